"""Loading: one message for everything that does not fit, chunks in any order, progress and cancelling."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import random_tensors, stored, tiny_config, write_model_folder, write_tensors
from stepping import load

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.errors import CancelledError, ModelError
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights import loader, open_weights

CONFIG = tiny_config("llama", attention_bias=True)


def program_of(config: dict[str, Any], align: int = 1) -> tuple[Program, Any]:
    device = ReferenceDevice(col_align=align, head_align=align)
    model = find_model(config["architectures"][0], config)
    limits = Limits(max_tokens=32, tail_rows=4, max_seqs=2)
    settings = model.config.from_dict(config)
    program = build(model.forward, settings, device.info, dtype="f32", kv_dtype="f32", limits=limits, blocks=2)
    return program, device.create(program)


def load_from(path: Path, tensors: dict[str, np.ndarray], **options: Any) -> Any:
    program, executable = program_of(CONFIG)
    write_tensors(path / "model.safetensors", tensors)
    with open_weights(path) as reader:
        loader.load_weights(program, reader, executable, **options)
    return executable


def test_everything_that_does_not_fit_is_one_message(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((24, 47), np.float32)
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros((1, 48), np.float32)
    with pytest.raises(ModelError) as caught:
        load_from(tmp_path, tensors)
    text = str(caught.value)
    assert "4 of" in text
    assert "model.norm.weight [48] is missing" in text
    assert "lm_head.weight [101, 48] is missing" in text
    assert "model.layers.0.self_attn.k_proj.weight has shape [24, 47], expected [24, 48]" in text
    assert "model.layers.1.self_attn.q_proj.bias has shape [1, 48], expected [48]" in text


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"and \d+ more"):
        load_from(tmp_path, {"something.else": np.zeros(3, np.float32)})


def test_integer_weights_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    data = path.read_bytes().replace(b'"model.norm.weight": {"dtype": "F32"', b'"model.norm.weight": {"dtype": "I32"')
    path.write_bytes(data)
    program, executable = program_of(CONFIG)
    with open_weights(tmp_path) as reader, pytest.raises(ModelError, match=r"model\.norm\.weight is stored as i32"):
        loader.load_weights(program, reader, executable)


def test_unused_tensors_are_a_warning_and_a_tied_head_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config("llama", tie_word_embeddings=True)
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = np.ones((101, 48), np.float32)
    tensors["model.layers.7.extra.weight"] = np.ones(3, np.float32)
    with caplog.at_level(logging.WARNING):
        load(write_model_folder(tmp_path, config, tensors))
    (record,) = caplog.records
    assert record.getMessage() == "unused tensors (1): model.layers.7.extra.weight"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("align", [1, 32])
def test_small_chunks_and_threads_load_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, align: int
) -> None:
    folder = write_model_folder(tmp_path, CONFIG, shards=2)
    program, whole = program_of(CONFIG, align)
    _, pieces = program_of(CONFIG, align)
    calls: list[tuple[int, int]] = []
    with open_weights(folder) as reader:
        loader.load_weights(program, reader, whole)
        monkeypatch.setattr(loader, "CHUNK_BYTES", 1)
        loader.load_weights(
            program, reader, pieces, threads=threads, progress=lambda done, total: calls.append((done, total))
        )
    for one, other in zip(whole.weights, pieces.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(calls) > len(program.weights)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1] > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_loading_can_be_cancelled(tmp_path: Path, threads: int) -> None:
    done: list[int] = []
    with pytest.raises(CancelledError):
        load_from(
            tmp_path,
            random_tensors(CONFIG),
            threads=threads,
            progress=lambda now, total: done.append(now),
            cancelled=lambda: len(done) >= 3,
        )
    assert 3 <= len(done) < 10


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_while_loading_reaches_the_caller(tmp_path: Path, threads: int) -> None:
    program, executable = program_of(CONFIG)
    write_tensors(tmp_path / "model.safetensors", random_tensors(CONFIG))
    with open_weights(tmp_path) as reader:
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:20000])
        with pytest.raises(ModelError, match="cut short"):
            loader.load_weights(program, reader, executable, threads=threads)


def test_double_precision_is_narrowed(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    program, executable = program_of(CONFIG)
    write_tensors(tmp_path / "model.safetensors", tensors, "float64")
    with open_weights(tmp_path) as reader:
        loader.load_weights(program, reader, executable)
    at = next(i for i, spec in enumerate(program.weights) if spec.name == "lm_head")
    np.testing.assert_array_equal(executable.weights[at], tensors["lm_head.weight"])


def test_stacked_parts_may_have_different_types(tmp_path: Path) -> None:
    """q_proj in bf16, k_proj in fp32, one stacked weight: nothing is rounded that was not rounded in the file."""
    tensors = random_tensors(CONFIG)
    narrow = {name: values for name, values in tensors.items() if "q_proj" in name or "up_proj" in name}
    write_tensors(tmp_path / "model-00001-of-00002.safetensors", narrow, "bfloat16")
    rest = {name: values for name, values in tensors.items() if name not in narrow}
    write_tensors(tmp_path / "model-00002-of-00002.safetensors", rest)
    program, executable = program_of(CONFIG)
    with open_weights(tmp_path) as reader:
        loader.load_weights(program, reader, executable)
    at = next(i for i, spec in enumerate(program.weights) if spec.name.endswith("{q_proj,k_proj,v_proj}"))
    wanted = [tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    np.testing.assert_array_equal(executable.weights[at], np.concatenate([stored(wanted[0], "bfloat16"), *wanted[1:]]))
