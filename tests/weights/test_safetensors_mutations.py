"""SafetensorsFile on broken files: a ModelError or a valid reading, never anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights import SafetensorsFile
from dashinfer_lite.weights.safetensors import DTYPES

RawFile = Callable[..., bytes]
common = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def accepted(path: Path, data: bytes) -> bool:
    """Opens and reads all of the file; what we accept, the safetensors package accepts too, with the same bytes."""
    path.write_bytes(data)
    try:
        with SafetensorsFile(path) as file:
            ours = {name: (list(info.shape), file.read(name).tobytes()) for name, info in file.tensors.items()}
            bools = {name for name, info in file.tensors.items() if info.dtype == "bool"}
    except ModelError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return False
    theirs = {name: (entry["shape"], bytes(entry["data"])) for name, entry in safetensors.deserialize(data)}
    assert {name: ours[name] for name in ours.keys() - bools} == {name: theirs[name] for name in ours.keys() - bools}
    return True


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_every_truncation_is_an_error(tmp_path: Path, small_file: bytes) -> None:
    assert accepted(tmp_path / "x.safetensors", small_file)
    for length in range(len(small_file)):
        assert not accepted(tmp_path / "x.safetensors", small_file[:length])


HEADER_LENGTHS = [0, 1, 3, 10**8 + 1]
HEADER_LENGTHS += [2**31 - 1, 2**31, 2**31 + 8, 2**32 - 1, 2**32, 2**63 - 9, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]


@pytest.mark.parametrize("length", HEADER_LENGTHS)
@pytest.mark.parametrize("sparse_size", [None, 2**31 + 100])
def test_wrong_header_lengths(tmp_path: Path, raw_file: RawFile, length: int, sparse_size: int | None) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"w": entry()}, bytes(16), length))
    if sparse_size is not None:
        os.truncate(path, sparse_size)
    with pytest.raises(ModelError, match=r"x\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b' {"w":{}}', "not a JSON object"),
        (b"{", "not valid JSON"),
        (b"{}{}", "not valid JSON"),
        (b'{"a\xff":1}', "not valid JSON"),
        (b'{"\\ud800":1}', "not valid JSON"),
        (b"{" + b'"a":{' * 100_000, "nested deeper"),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "nested deeper"),
        (b'{"a":' + b"[" * 1_000_000, "nested deeper"),
        (b'{"a":' + b"9" * 1_000_000 + b"}", "64 bits"),
        (b'{"a":1e999}', "double"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1,"a":2}', "occurs twice"),
        (b'{"w":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "occurs twice"),
        ({"__metadata__": 3}, "__metadata__"),
        ({"__metadata__": {"a": 3}}, "__metadata__"),
        ({"w": []}, "is described by"),
        ({"w": {"dtype": "F32", "shape": [4]}}, "is described by"),
        ({"w": {**entry(), "more": 1}}, "is described by"),
        ({"w": entry(dtype="F4")}, "known are F64"),
        ({"w": entry(dtype="f32")}, "known are F64"),
        ({"w": entry(dtype=None)}, "known are F64"),
        ({"w": entry(dtype=["F32"])}, "known are F64"),
        ({"w": entry(shape=4)}, "has shape"),
        ({"w": entry(shape=[-2, -2])}, "has shape"),
        ({"w": entry(shape=[4.0])}, "has shape"),
        ({"w": entry(shape=[True, 4])}, "has shape"),
        ({"w": entry(shape=["4"])}, "has shape"),
        ({"w": entry(shape=[1] * 15 + [2, 2])}, "has shape"),
        ({"w": entry(shape=[2**62, 4], offsets=[0, 0])}, "no memory holds"),
        ({"w": entry(shape=[2**33, 2**31], offsets=[0, 0])}, "no memory holds"),
        ({"w": entry(shape=[2**62, 4, 0], offsets=[0, 0])}, "no memory holds"),
        ({"w": entry(shape=[2**63, 2**63])}, "no memory holds"),
        ({"w": entry(shape=[3, 2])}, "needs 24"),
        ({"w": entry(offsets=[0])}, "data_offsets"),
        ({"w": entry(offsets=[0, 8, 16])}, "data_offsets"),
        ({"w": entry(offsets=[16, 0])}, "data_offsets"),
        ({"w": entry(offsets=[-16, 0])}, "data_offsets"),
        ({"w": entry(offsets=["0", "16"])}, "data_offsets"),
        ({"w": entry(offsets=[2**63, 2**63 + 16])}, "unused before"),
        ({"w": entry(offsets=[1, 17])}, "1 bytes unused before"),
        ({"w": entry(shape=[3], offsets=[0, 12])}, "4 bytes follow"),
        ({"w": entry(), "v": entry()}, "16 bytes before the previous one ends"),
        ({"w": entry(shape=[3], offsets=[0, 12]), "v": entry(shape=[2], offsets=[8, 16])}, "4 bytes before"),
        ({"w": entry(), "v": entry(offsets=[16, 32])}, "cut short"),
        ({}, "16 bytes follow"),
    ],
)
def test_wrong_headers_are_named(tmp_path: Path, raw_file: RawFile, header: Any, message: str) -> None:
    data = raw_file(header, bytes(16))
    with pytest.raises(ModelError, match=message):
        (tmp_path / "x.safetensors").write_bytes(data)
        SafetensorsFile(tmp_path / "x.safetensors")
    assert not accepted(tmp_path / "x.safetensors", data)


def test_a_header_over_the_format_s_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((150_000_000).to_bytes(8, "little") + b"{")
    os.truncate(path, 200_000_000)
    with pytest.raises(ModelError, match="the format allows"):
        SafetensorsFile(path)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "lfs").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    (tmp_path / "html").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "lfs": "git lfs pull",
        "html": "no safetensors file",
        "empty": "0 bytes",
        "folder": "not a regular file",
        "loop": "loop of symbolic links",
        "dangling": "does not exist",
        "device": "not a regular file",
        "pipe": "not a regular file",
        "missing": "does not exist",
        "nul\0byte": "null",
    }.items():
        with pytest.raises(ModelError, match=message):
            SafetensorsFile(tmp_path / name)


def test_a_failed_open_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x02" + bytes(7) + b"{}rest")
    before = len(list(Path("/proc/self/fd").iterdir()))
    errors = []
    for _ in range(10):
        with pytest.raises(ModelError) as caught:
            SafetensorsFile(tmp_path / "x")
        errors.append(caught.value)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@common
@given(data=st.data())
def test_mutated_bytes(tmp_path: Path, small_file: bytes, data: st.DataObject) -> None:
    mutated = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete", "swap"])):
            case "set":
                mutated[at] = data.draw(st.integers(0, 255))
            case "insert":
                mutated[at:at] = data.draw(st.binary(max_size=9))
            case "delete":
                del mutated[at : at + data.draw(st.integers(0, 3))]
            case "swap":
                other = data.draw(st.integers(0, len(mutated) - 1))
                mutated[at], mutated[other] = mutated[other], mutated[at]
    accepted(tmp_path / "x.safetensors", bytes(mutated))


numbers: Any = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64, 1.0, True, None, "1", []])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(DTYPES)) | json_values,
        "shape": st.lists(numbers, max_size=3) | json_values,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | json_values,
    }
)


@common
@given(header=st.dictionaries(st.text(max_size=5), entries | json_values, max_size=3), size=st.integers(0, 40))
def test_generated_headers(tmp_path: Path, raw_file: RawFile, header: dict[str, Any], size: int) -> None:
    accepted(tmp_path / "x.safetensors", raw_file(header, bytes(size)))


@common
@given(
    tensors=st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=5),
    order=st.randoms(),
    padding=st.integers(0, 9),
)
def test_generated_valid_files(
    tmp_path: Path, raw_file: RawFile, tensors: list[tuple[str, list[int]]], order: Any, padding: int
) -> None:
    sizes = {code: 8 if "64" in code else 4 if "32" in code else 2 if "16" in code else 1 for code in DTYPES}
    items, end = [], 0
    for number, (code, shape) in enumerate(tensors):
        nbytes = sizes[code]
        for size in shape:
            nbytes *= size
        items.append((f"t{number}", entry(code, shape, [end, end + nbytes])))
        end += nbytes
    order.shuffle(items)
    header = json.dumps(dict(items)).encode() + b" " * padding
    assert accepted(tmp_path / "x.safetensors", raw_file(header, bytes(i % 256 for i in range(end))))
