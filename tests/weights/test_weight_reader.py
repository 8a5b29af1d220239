"""open_weights over every layout of a folder, and the exact widening of stored values."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights import open_weights, to_float32
from dashinfer_lite.weights.reader import INDEX_FILE

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensor(value: float) -> np.ndarray:
    return np.full((3, 2), value, np.float32)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with a in the first and b, c in the second shard, and no index yet."""
    save_file({"a": tensor(1)}, tmp_path / SHARDS[0])
    save_file({"b": tensor(2), "c": tensor(3)}, tmp_path / SHARDS[1])
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map}))


def test_one_file(tmp_path: Path) -> None:
    save_file({"a": tensor(1)}, tmp_path / "model.safetensors")
    save_file({"other": tensor(1)}, tmp_path / "golden.safetensors")
    with open_weights(tmp_path) as weights:
        assert weights.names() == ("a",)
        assert weights.info("a").shape == (3, 2)
        assert weights.info("a").file == tmp_path / "model.safetensors"
        np.testing.assert_array_equal(weights.read("a"), tensor(1))
        np.testing.assert_array_equal(weights.read_rows("a", 1, 3), tensor(1)[1:])
        with pytest.raises(ModelError, match=r"lacks tensor 'lm_head\.weight'"):
            weights.info("lm_head.weight")
    with pytest.raises(ValueError, match="closed"):
        weights.read("a")


def test_shards_with_an_index(sharded: Path) -> None:
    write_index(sharded, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]})
    with open_weights(str(sharded)) as weights:
        assert sorted(weights.names()) == ["a", "b", "c"]
        assert [weights.read(name)[0, 0] for name in "abc"] == [1, 2, 3]


def test_the_index_decides_between_shards(sharded: Path) -> None:
    save_file({"a": tensor(9), "b": tensor(2)}, sharded / SHARDS[1])
    write_index(sharded, {"a": SHARDS[0], "b": SHARDS[1]})
    with open_weights(sharded) as weights:
        assert weights.read("a")[0, 0] == 1


def test_shards_without_an_index(sharded: Path) -> None:
    save_file({"a": tensor(7)}, sharded / "adapter_model.safetensors")
    with open_weights(sharded) as weights:
        assert [weights.read(name)[0, 0] for name in "abc"] == [1, 2, 3]


def test_files_of_any_name_without_an_index(tmp_path: Path) -> None:
    save_file({"a": tensor(1)}, tmp_path / "x.safetensors")
    save_file({"b": tensor(2)}, tmp_path / "y.safetensors")
    (tmp_path / "._x.safetensors").write_bytes(b"rubbish that some archives leave")
    with open_weights(tmp_path) as weights:
        assert sorted(weights.names()) == ["a", "b"]


def test_a_name_in_two_files_needs_an_index(sharded: Path) -> None:
    save_file({"a": tensor(1), "b": tensor(2)}, sharded / SHARDS[0])
    with pytest.raises(ModelError, match="'b' lies in both"):
        open_weights(sharded)


def test_missing_shards(sharded: Path) -> None:
    (sharded / SHARDS[0]).unlink()
    with pytest.raises(ModelError, match="1 of the 2 files"):
        open_weights(sharded)
    write_index(sharded, {"a": SHARDS[0], "b": SHARDS[1]})
    with pytest.raises(ModelError, match=f"lacks {SHARDS[0]}"):
        open_weights(sharded)


def test_an_index_that_does_not_fit_the_shards(sharded: Path) -> None:
    write_index(sharded, {"a": SHARDS[1], "b": SHARDS[1]})
    with pytest.raises(ModelError, match="lacks tensor 'a'"):
        open_weights(sharded)
    write_index(sharded, {"a": SHARDS[0], "old.rotary_emb.inv_freq": SHARDS[0]})
    with open_weights(sharded) as weights:
        assert weights.names() == ("a",)


@pytest.mark.parametrize(
    "shard",
    [
        "../model-00001-of-00002.safetensors",
        "/etc/passwd",
        "/tmp/x.safetensors",
        "..",
        "",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x\0.safetensors",
        "pytorch_model.bin",
        5,
        None,
        ["model.safetensors"],
        {},
    ],
)
def test_shards_stay_in_the_folder(sharded: Path, shard: object) -> None:
    write_index(sharded, {"a": SHARDS[0], "b": shard})
    with pytest.raises(ModelError, match=r"expected the plain name of a \.safetensors file"):
        open_weights(sharded)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": NaN}}']
)
def test_wrong_indices(sharded: Path, text: str) -> None:
    (sharded / INDEX_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"index\.json"):
        open_weights(sharded)


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    save_file({"a": tensor(1)}, blobs / "0123abcd")
    (snapshot / "model.safetensors").symlink_to("../blobs/0123abcd")
    with open_weights(snapshot) as weights:
        assert weights.read("a")[0, 0] == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [("model.safetensors", "loop of symbolic"), ("/dev/zero", "not a regular"), (".", "not a regular"), ("x", "exist")],
)
def test_links_to_anything_else_are_errors(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(target)
    with pytest.raises(ModelError, match=message):
        open_weights(tmp_path)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match=r"only 'pytorch_model\.bin'; convert it to safetensors"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        open_weights(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.safetensors weights \(pickled"):
        open_weights(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match=r"model\.gguf"):
        open_weights(tmp_path)
    for path in (tmp_path / "missing", tmp_path / "model.gguf", "nul\0byte"):
        with pytest.raises(ModelError, match="is not a folder"):
            open_weights(path)


def test_buffers_are_ignored_and_biases_are_not(tmp_path: Path) -> None:
    ignored = ["model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.masked_bias", "transformer.h.0.attn.bias"]
    kept = ["transformer.h.0.attn.c_attn.bias", "model.layers.0.self_attn.q_proj.bias", "v.attn.qkv.bias"]
    save_file({name: tensor(0) for name in ignored + kept}, tmp_path / "model.safetensors")
    with open_weights(tmp_path) as weights:
        assert set(weights.names()) == set(kept)


def test_bf16_widens_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = to_float32(bits, "bf16")
    np.testing.assert_array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)
    assert to_float32(np.array(0x3F80, np.uint16), "bf16").shape == ()


def test_f16_widens_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    for sign, exponent, mantissa, value in zip(
        bits >> 15, bits >> 10 & 31, bits & 1023, to_float32(bits.view(np.float16), "f16"), strict=True
    ):
        if exponent < 31:
            fraction = float(mantissa) + (1024 if exponent else 0)
            assert value == (-1) ** int(sign) * fraction * 2.0 ** (max(int(exponent), 1) - 25)


@pytest.mark.parametrize(("dtype", "mantissa_bits", "bias"), [("f8_e4m3", 3, 7), ("f8_e5m2", 2, 15)])
def test_8_bit_floats_widen_exactly(dtype: str, mantissa_bits: int, bias: int) -> None:
    values = to_float32(np.arange(256, dtype=np.uint8), dtype)
    assert values.dtype == np.float32
    for bits, value in enumerate(values):
        exponent, mantissa = bits >> mantissa_bits & (127 >> mantissa_bits), bits & (1 << mantissa_bits) - 1
        if dtype == "f8_e5m2" and exponent == 31:
            assert np.isnan(value) if mantissa else abs(value) == np.inf
        elif dtype == "f8_e4m3" and bits & 127 == 127:
            assert np.isnan(value)
        else:
            fraction = mantissa + (1 << mantissa_bits if exponent else 0)
            assert abs(value) == fraction * 2.0 ** (max(exponent, 1) - bias - mantissa_bits)
            assert np.signbit(value) == bits >> 7


def test_wide_types() -> None:
    single = np.ones(3, np.float32)
    assert to_float32(single, "f32") is single
    np.testing.assert_array_equal(to_float32(np.array([0.1, 1e300]), "f64"), np.array([np.float32(0.1), np.inf]))
    with pytest.raises(ModelError, match="i32 weights are not floating-point"):
        to_float32(np.ones(3, np.int32), "i32")
    with pytest.raises(ValueError, match="does not hold bf16"):
        to_float32(single, "bf16")


@settings(deadline=None, print_blob=True)
@given(
    index=st.dictionaries(
        st.sampled_from(["weight_map", "metadata", "x"]),
        st.dictionaries(st.text(max_size=3) | st.just("a"), st.text(max_size=8) | st.sampled_from(SHARDS) | st.none())
        | st.text()
        | st.lists(st.integers()),
    )
)
def test_generated_indices(tmp_path_factory: pytest.TempPathFactory, index: object) -> None:
    folder = tmp_path_factory.getbasetemp() / "generated_indices"
    if not folder.exists():
        folder.mkdir()
        save_file({"a": tensor(1)}, folder / SHARDS[0])
    (folder / INDEX_FILE).write_text(json.dumps(index))
    try:
        with open_weights(folder) as weights:
            assert weights.names() == ("a",)
    except ModelError as error:
        assert str(folder) in str(error)
