"""The writer of our quantized folders: what it writes is what the reader reads, and it never harms what is there."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import tiny_config, write_model_folder
from safetensors import safe_open

from dashinfer_lite import ModelError, RequestError
from dashinfer_lite.weights import ModelFolder, save_quantized, to_float32
from dashinfer_lite.weights.grid import Codes, Grid
from dashinfer_lite.weights.save_quantized import Saved, pack_nibbles

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
GRIDS = {UP: Grid(4, 32, "bf16"), DOWN: Grid(8), "model.embed_tokens": Grid(8)}
DESCRIPTION = {"quant": "a16w4-g32", "head": "int8", "overrides": {}}


def coarse(rows: np.ndarray, grid: Grid) -> Codes:
    """A quantizer that is easy to follow: scales of powers of two, the zero point in the middle."""
    if not np.isfinite(rows).all():
        raise ValueError("holds values that are not finite")
    n, k = rows.shape
    codes = np.clip(np.rint(rows * 8) + grid.levels // 2, 0, grid.levels).astype(np.uint8)
    scales = np.full((n, grid.groups(k)), 0.125, np.float32)
    return Codes(codes, scales, np.full((n, grid.groups(k)), grid.levels // 2, np.int16))


def save(source: Path, target: Path, grids: dict[str, Grid] = GRIDS, **more: Any) -> Saved:
    """Write `target` with the quantizer above."""
    folder = ModelFolder(source)
    with folder.open_weights() as weights:
        return save_quantized.save_quantized(folder, weights, target, grids, DESCRIPTION, coarse, **more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny model with an odd number of columns in its MLP's down projection."""
    config = tiny_config("qwen3", intermediate_size=73, torch_dtype="bfloat16")
    return write_model_folder(tmp_path / "source", config, seed=3)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 700])
def test_what_is_written_is_what_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, chunk_bytes: int
) -> None:
    """Codes, scales and zero points of every matrix, and all else bit for bit, whatever the chunks and the shards."""
    monkeypatch.setattr(save_quantized, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(save_quantized, "CHUNK_BYTES", chunk_bytes)
    seen: list[tuple[int, int]] = []
    grids = {**GRIDS, DOWN: Grid(4)}
    saved = save(source, tmp_path / "out", grids, progress=lambda *at: seen.append(at))
    assert seen[-1] == (saved.source_bytes, saved.source_bytes)
    assert len([name for name in saved.files if name.endswith(".safetensors")]) == (1 if shard_bytes > 1 << 20 else 5)
    with ModelFolder(source).open_weights() as before, ModelFolder(tmp_path / "out").open_weights() as after:
        assert after.grids == grids
        assert set(before.names()) == set(after.names())
        for name in before.names():
            module = name.removesuffix(".weight")
            raw = before.read(name)
            if module not in grids:
                assert np.array_equal(after.read(name), raw)
                continue
            expected = coarse(to_float32(raw, before.info(name).dtype), grids[module])
            for mine, wanted in zip(after.read_codes(module, 0, len(raw)), expected, strict=True):
                assert np.array_equal(mine, wanted)


def test_the_configuration_says_what_was_done(source: Path, tmp_path: Path) -> None:
    """Everything of the source, and the policy with each matrix's bits, group and shape."""
    save(source, tmp_path / "out")
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "out"))
    quantization = after.pop("quantization_config")
    assert after == before
    assert quantization.pop("modules") == {
        UP: {"bits": 4, "group": 32, "shape": [73, 48]},
        DOWN: {"bits": 8, "group": 0, "shape": [48, 73]},
        "model.embed_tokens": {"bits": 8, "group": 0, "shape": [101, 48]},
    }
    assert quantization == {"quant_method": "dashinfer", "version": 1, **DESCRIPTION}


def test_others_can_read_the_files(source: Path, tmp_path: Path) -> None:
    """The safetensors package accepts them, and every tensor begins at a multiple of its element's size."""
    save(source, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "dashinfer", "version": "1"}
        assert opened.get_tensor(f"{UP}.weight.codes").shape == (73, 24)
        assert opened.get_slice(f"{UP}.weight.scales").get_dtype() == "BF16"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            width = {"F32": 4, "BF16": 2, "U8": 1}[entry["dtype"]]
            assert entry["data_offsets"][0] % width == 0, name


def test_nibbles_are_packed_low_first() -> None:
    """The last high half of an odd row is 0."""
    assert pack_nibbles(np.array([[1, 2, 15], [3, 4, 5]], np.uint8)).tolist() == [[0x21, 0x0F], [0x43, 0x05]]


def test_other_files_come_along(source: Path, tmp_path: Path) -> None:
    """Tokenizer, templates and licence; no code, no weights of other kinds, nothing hidden."""
    wanted = ["tokenizer.json", "generation_config.json", "LICENSE", "merges.txt", "additional_chat_templates/x.jinja"]
    unwanted = ["modeling.py", "pytorch_model.bin", "pytorch_model.bin.index.json", ".hidden.json", "x.pickle"]
    for name in wanted + unwanted:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    save(source, tmp_path / "out")
    assert all((tmp_path / "out" / name).read_text() == "{}" for name in wanted)
    assert not any((tmp_path / "out" / name).exists() for name in unwanted)


def test_a_full_folder_is_refused(source: Path, tmp_path: Path) -> None:
    """So is a file, and the source itself, also by another name and by force."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"not empty.*notes\.txt.*--force"):
        save(source, out)
    with pytest.raises(RequestError, match="not a folder"):
        save(source, out / "notes.txt")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(RequestError, match="the model itself"):
        save(source, tmp_path / "link", force=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_force_replaces_a_model(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old shards go, other files stay, and a link to the source's weights is cut, not written through."""
    out = tmp_path / "out"
    with monkeypatch.context() as small:
        small.setattr(save_quantized, "SHARD_BYTES", 20_000)
        save(source, out)
    (out / "notes.txt").write_text("mine")
    weights = source / "model.safetensors"
    before = weights.read_bytes()
    (out / "model.safetensors").symlink_to(weights)
    save(source, out, force=True)
    assert weights.read_bytes() == before
    assert not (out / "model.safetensors").is_symlink()
    assert not list(out.glob("model-*"))
    assert (out / "notes.txt").read_text() == "mine"
    with ModelFolder(out).open_weights() as after:
        assert set(after.grids) == set(GRIDS)


@pytest.mark.parametrize("existed", [False, True])
def test_an_error_leaves_nothing_behind(tmp_path: Path, existed: bool) -> None:
    """A matrix with a NaN is named, and the folder is as it was."""
    config = tiny_config("qwen3")
    source = write_model_folder(tmp_path / "source", config)
    name = f"{DOWN}.weight"
    file = source / "model.safetensors"
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    at = 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
    data[at : at + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*not finite"):
        save(source, out)
    assert out.exists() == existed
    assert not existed or not list(out.iterdir())


def test_a_cut_short_folder_is_no_model(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json is the last file, and whoever stops the writing finds nothing."""
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        assert not (out / "config.json").exists()
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(source, out, progress=stop)
    assert not out.exists()


def test_what_cannot_be_quantized_is_named(source: Path, tmp_path: Path) -> None:
    """A module without a tensor, and a tensor that is no matrix."""
    with pytest.raises(ModelError, match=r"lacks tensor.*lm_tail"):
        save(source, tmp_path / "out", {"lm_tail": Grid(8)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*expected a matrix"):
        save(source, tmp_path / "out", {"model.norm": Grid(8)})


def test_memory_stays_at_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below the largest tensor's size, whatever its size is."""
    config = tiny_config("qwen3", vocab_size=20_000, hidden_size=128)
    source = write_model_folder(tmp_path / "source", config)
    monkeypatch.setattr(save_quantized, "CHUNK_BYTES", 1 << 18)
    largest = 20_000 * 128 * 4
    save(source, tmp_path / "warm")
    tracemalloc.start()
    try:
        save(source, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < largest / 4
