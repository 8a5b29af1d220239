"""SafetensorsFile on sound files: every dtype, rows, buffers, threads, closing."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights import SafetensorsFile
from dashinfer_lite.weights.safetensors import DTYPES

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("code", [code for code in DTYPES if code not in ("BF16", "F8_E4M3", "F8_E5M2")])
def test_reads_what_the_safetensors_package_writes(tmp_path: Path, code: str) -> None:
    name, storage = DTYPES[code]
    bits = np.random.default_rng(0).integers(0, 2 if code == "BOOL" else 256, 3 * 5 * 8, dtype=np.uint8)
    matrix = bits.view(storage)[:15].reshape(3, 5)
    scalar = np.array(matrix[0, 0])
    stored = {"matrix": matrix, "scalar": scalar, "empty": matrix[:0], "cube": matrix.reshape(3, 1, 5)}
    save_file(stored, tmp_path / "x.safetensors", metadata={"format": "np"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"format": "np"}
        assert file.tensors.keys() == stored.keys()
        for key, array in stored.items():
            assert file.tensors[key].dtype == name
            got = file.read(key)
            assert (got.shape, got.dtype, got.tobytes()) == (array.shape, array.dtype, array.tobytes())


@pytest.mark.parametrize("code", DTYPES)
def test_agrees_with_the_package_on_the_bytes(tmp_path: Path, code: str, raw_file: Callable[..., bytes]) -> None:
    name, storage = DTYPES[code]
    nbytes = 6 * np.dtype(storage).itemsize
    data = raw_file(
        {"w": {"dtype": code, "shape": [2, 3], "data_offsets": [0, nbytes]}},
        bytes(i % 2 if code == "BOOL" else i for i in range(nbytes)),
    )
    (tmp_path / "x.safetensors").write_bytes(data)
    [(_, reference)] = safetensors.deserialize(data)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.tensors["w"].dtype == name
        assert file.tensors["w"].shape == tuple(reference["shape"])
        assert file.read("w").tobytes() == bytes(reference["data"])


@pytest.mark.parametrize("family", ["llama2", "llama3_2", "mistral", "qwen1_5", "qwen2_5", "qwen3"])
def test_golden_weights_equal_the_package_s_reading(family: str) -> None:
    path = GOLDEN / family / "model.safetensors"
    reference = dict(safetensors.deserialize(path.read_bytes()))
    with SafetensorsFile(path) as file:
        assert file.tensors.keys() == reference.keys()
        for name, expected in reference.items():
            assert file.read(name).tobytes() == bytes(expected["data"])


def test_rows_are_slices_of_the_whole(tmp_path: Path) -> None:
    matrix = np.arange(35, dtype=np.float32).reshape(7, 5)
    stored: dict[str, np.ndarray] = {"pad": np.ones(3, np.int8), "m": matrix, "none": np.empty((4, 0), np.float32)}
    save_file(stored, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        for start in range(8):
            for stop in range(start, 8):
                np.testing.assert_array_equal(file.read_rows("m", start, stop), matrix[start:stop])
        assert file.read_rows("none", 1, 3).shape == (2, 0)
        for start, stop in [(-1, 2), (3, 2), (0, 8), (2**63, 2**64)]:
            with pytest.raises(ValueError, match="rows"):
                file.read_rows("m", start, stop)


def test_reads_into_the_callers_buffer(tmp_path: Path) -> None:
    matrix = np.arange(35, dtype=np.float32).reshape(7, 5)
    save_file({"m": matrix}, tmp_path / "x.safetensors")
    out = np.zeros((10, 5), np.float32)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.read_rows("m", 2, 6, out=out[1:5]).base is out
        np.testing.assert_array_equal(out[1:5], matrix[2:6])
        assert not out[0].any() and not out[5:].any()
        read_only = np.zeros((7, 5), np.float32)
        read_only.flags.writeable = False
        for wrong in (out, out[:7].astype(np.float64), np.zeros((5, 7), np.float32).T, read_only):
            with pytest.raises(ValueError, match="out is"):
                file.read("m", out=wrong)


def test_a_bool_of_any_byte_is_a_bool(tmp_path: Path, raw_file: Callable[..., bytes]) -> None:
    header = {"b": {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}}
    (tmp_path / "x.safetensors").write_bytes(raw_file(header, bytes([0, 1, 2, 255])))
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.read("b").tobytes() == bytes([0, 1, 1, 1])


def test_names_what_is_missing(tmp_path: Path, small_file: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(small_file)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert list(file.tensors) == ["w", "empty", "scalar"]
        with pytest.raises(ModelError, match=r"x\.safetensors.*'lm_head\.weight'"):
            file.read("lm_head.weight")
        with pytest.raises(ModelError, match="has no rows"):
            file.read_rows("scalar", 0, 1)
    with pytest.raises(ValueError, match="closed"):
        file.read("w")


def test_a_file_cut_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"m": np.zeros((1000, 10), np.float32)}, path)
    with SafetensorsFile(path) as file:
        os.truncate(path, 20_000)
        assert not file.read_rows("m", 0, 100).any()
        with pytest.raises(ModelError, match="cut short"):
            file.read("m")


def test_closing_leaves_reads_of_other_threads_alone(tmp_path: Path) -> None:
    matrix = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    save_file({"m": matrix}, tmp_path / "x.safetensors")
    before = len(list(Path("/proc/self/fd").iterdir()))
    file = SafetensorsFile(tmp_path / "x.safetensors")
    failures: list[BaseException] = []
    started = threading.Barrier(5)

    def read_until_closed() -> None:
        started.wait()
        try:
            for row in itertools.cycle(range(1000)):
                np.testing.assert_array_equal(file.read_rows("m", row, row + 1)[0], matrix[row])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_until_closed) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    file.close()
    for thread in threads:
        thread.join()
    assert len(failures) == 4 and all("closed" in str(error) for error in failures)
    failures.clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
