"""Quantized models: checkpoints against their families' references, and every mode against its own weights in fp32.

The first part holds the golden folders to the same rules as unquantized ones. In the second, random models are run in
integers and in fp32 with the weights that the integers stand for: what is left is the rounding of activations.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import random_tensors, tiny_config, write_model_folder
from quantized_folders import awq, fp8, gptq, own, write_folder
from safetensors.numpy import load_file
from stepping import Loop, Sequence

from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.graph.instant_quant import instant_quant
from dashinfer_lite.graph.quant import QuantPolicy, matrix_specs
from dashinfer_lite.loading import LoadedModel, Options, load_model
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.grid import dequantize
from dashinfer_lite.weights.save_quantized import save_quantized

MODELS = ("qwen2_gptq4", "qwen2_gptq8", "qwen2_awq", "qwen3_fp8")
PROMPTS = ("p0", "p1", "p2")
NEW_TOKENS = 48


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(folder, Options(**{"kv_memory": "4MB", **options}))


def generate(model: LoadedModel, prompts: list[list[int]], new_tokens: int, chunk: int | None = None) -> list[Sequence]:
    try:
        return Loop(model.executable, model.program).generate(prompts, new_tokens, chunk=chunk)
    finally:
        model.close()


# ---- golden folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_fp32(golden: Path, name: str, device: dict[str, Any]) -> None:
    """Rule 1: the checkpoint's own numbers in fp32, logits within 1e-3 and all tokens."""
    expected = load_file(golden / name / "golden.safetensors")
    model = load(golden / name, dtype="fp32", **device)
    assert not model.quant and model.head == "fp32"
    sequences = generate(model, [expected[f"{prompt}.input_ids"].tolist() for prompt in PROMPTS], NEW_TOKENS)
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        rows = expected[f"{prompt}.logits_positions"]
        error = np.abs(np.stack([sequence.logits[row] for row in rows]) - expected[f"{prompt}.logits"]).max()
        assert error <= 1e-3, (prompt, error)
        assert sequence.drawn == expected[f"{prompt}.greedy_ids"].tolist(), prompt


@pytest.mark.in_turn("chunk")
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", MODELS)
def test_16_bit(golden: Path, name: str, device: dict[str, Any], chunk: int | None) -> None:
    """Rule 2: GPTQ and AWQ on their own grid with 16-bit activations, FP8 multiplied out to bf16."""
    expected = load_file(golden / name / "golden.safetensors")
    budget: dict[str, Any] = json.loads((golden / name / "golden.json").read_text())["low_precision_reference_error"]
    model = load(golden / name, **device)
    assert str(model.quant) == {"qwen2_gptq8": "a16w8-g32", "qwen3_fp8": "none"}.get(name, "a16w4-g32")
    sequences = generate(model, [expected[f"{prompt}.input_ids"].tolist() for prompt in PROMPTS], NEW_TOKENS, chunk)
    errors = []
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        rows = expected[f"{prompt}.logits_positions"]
        errors.append(np.stack([sequence.logits[row] for row in rows]) - expected[f"{prompt}.logits"])
        unsure = np.flatnonzero(expected[f"{prompt}.greedy_margin"] < 4 * budget["rms"])
        sure = int(unsure[0]) if len(unsure) else NEW_TOKENS
        assert sequence.drawn[:sure] == expected[f"{prompt}.greedy_ids"].tolist()[:sure], prompt
    error = np.concatenate([part.ravel() for part in errors])
    assert np.sqrt(np.mean(error**2)) <= 2 * budget["rms"]
    assert np.abs(error).max() <= 3 * budget["max_abs"]


@pytest.mark.parametrize("name", ["qwen2_gptq8", "qwen3_fp8"])
def test_8_bit_activations(golden: Path, name: str, device: dict[str, Any]) -> None:
    """Rule 3, teacher-forced: at least 95 % of the tokens, and a small divergence over the top 16."""
    expected = load_file(golden / name / "golden.safetensors")
    model = load(golden / name, quant="a8w8", **device)
    assert str(model.quant) == ("a8w8-g32" if "gptq" in name else "a8w8") and model.head == "int8"
    forced = [[*expected[f"{prompt}.input_ids"], *expected[f"{prompt}.greedy_ids"][:-1]] for prompt in PROMPTS]
    sequences = generate(model, forced, 1)
    agree, divergence = [], []
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        steps = np.stack(sequence.logits[-NEW_TOKENS:])
        agree.append(steps.argmax(axis=1) == expected[f"{prompt}.greedy_ids"])
        top = np.take_along_axis(steps, expected[f"{prompt}.greedy_top_ids"].astype(np.int64), axis=1)
        p, q = (softmax(logits.astype(np.float64)) for logits in (expected[f"{prompt}.greedy_top_logits"], top))
        divergence.append((p * np.log(p / q)).sum(axis=1))
    assert np.concatenate(agree).mean() >= 0.95
    assert np.concatenate(divergence).mean() <= 5e-3


def softmax(logits: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


# ---- random models -------------------------------------------------------------------------------------------------

PROMPT_IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [35, 8, 97, 9, 32, 38, 46], [2]]
SMALL = tiny_config("qwen2")
TIED = tiny_config("qwen3", tie_word_embeddings=True, head_dim=10, num_hidden_layers=1)

CHECKPOINTS = {
    "gptq-4": lambda config: gptq(config),
    "gptq-8-act-order": lambda config: gptq(config, bits=8, act_order=True),
    "gptq-4-act-order-v2": lambda config: gptq(config, act_order=True, version=2, group=24, symmetric=True),
    "gptq-4-short-last-group": lambda config: gptq(config, group=20, act_order=True),
    "gptq-4-per-channel": lambda config: gptq(config, group=-1),
    "awq": lambda config: awq(config),
    "fp8": lambda config: fp8(config),
    "own-4": lambda config: own(config),
    "own-8-bf16": lambda config: own(config, bits=8, group=0, scale_type="bfloat16"),
}


def logits(model: LoadedModel) -> np.ndarray:
    """Logits of all rows of three prompts and a few drawn tokens, in two chunks."""
    return np.concatenate([np.stack(each.logits) for each in generate(model, PROMPT_IDS, 3, chunk=5)])


def check_close(got: np.ndarray, wanted: np.ndarray) -> None:
    """16-bit activations: one part in 65000 of the largest of a group, a few times over."""
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 2e-3 * np.abs(wanted).max()


@pytest.mark.in_turn("config")
@pytest.mark.parametrize("config", [SMALL, TIED], ids=["qwen2", "qwen3-tied"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_the_model_that_it_stands_for(
    tmp_path: Path, name: str, config: dict[str, Any], device: dict[str, Any]
) -> None:
    """In fp32 to the bit; on its own grid within the rounding of activations."""
    if "gptq" in name and config is TIED:
        config = {**config, "head_dim": 16}  # whole words of codes
    if name == "awq" and config is TIED:
        config = {**config, "head_dim": 12}
    changed, tensors, plain = CHECKPOINTS[name](config)
    folder = write_folder(tmp_path / "packed", changed, tensors)
    unpacked = write_model_folder(tmp_path / "plain", config, plain)
    wanted = logits(load(unpacked, **device))
    np.testing.assert_array_equal(logits(load(folder, dtype="fp32", **device)), wanted)
    np.testing.assert_array_equal(logits(load(folder, quant="none", **device)), wanted)
    check_close(logits(load(folder, **device)), wanted)


@pytest.mark.in_turn("config")
@pytest.mark.parametrize("config", [SMALL, TIED], ids=["qwen2", "qwen3-tied"])
@pytest.mark.parametrize("mode", ["a16w8", "a16w4", "a16w4-g32", "a16w8-g64", "a8w8", "a8w8-g32"])
def test_instant_quant_computes_with_the_weights_of_its_formula(
    tmp_path: Path, mode: str, config: dict[str, Any], device: dict[str, Any]
) -> None:
    plain = random_tensors(config)
    folder = write_model_folder(tmp_path / "plain", config, plain)
    model = find_model(config["architectures"][0], config)
    specs = matrix_specs(model.forward, model.config.from_folder(ModelFolder(folder)), QuantPolicy.parse(mode))
    for module, spec in specs.items():
        name = f"{module}.weight"
        plain[name] = dequantize(instant_quant(plain[name], spec.grid), spec.grid)
    assert len(specs) == 7 * config["num_hidden_layers"] + 1
    wanted = logits(load(write_model_folder(tmp_path / "rounded", config, plain), **device))
    got = logits(load(folder, quant=mode, **device))
    if mode.startswith("a16"):
        check_close(got, wanted)
    else:
        assert np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)) <= 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_stored_type_is_quantized_alike_on_every_device(tmp_path: Path, dtype: str) -> None:
    config = tiny_config("llama", torch_dtype=dtype)
    folder = write_model_folder(tmp_path, config)
    policy = QuantPolicy.parse("a16w4-g32", overrides={"*.k_proj": "a8w8", "*.0.mlp.up_proj": None})
    options = {"quant": policy, "dtype": "fp32"}
    wanted = logits(load(folder, device="reference", **options))
    check_close(logits(load(folder, device="cpu", threads=2, **options)), wanted)


@pytest.mark.in_turn("config")
@pytest.mark.parametrize("mode", ["a16w8", "a16w4-g32", "a8w8-g32"])
@pytest.mark.parametrize("config", [SMALL, TIED], ids=["qwen2", "qwen3-tied"])
def test_a_folder_that_was_quantized_before_gives_the_same_bits(
    tmp_path: Path, mode: str, config: dict[str, Any], device: dict[str, Any]
) -> None:
    """Codes are the same whether NumPy makes them once or the device while loading."""
    folder = write_model_folder(tmp_path / "plain", config)
    policy = QuantPolicy.parse(mode, overrides={"*.v_proj": None})
    model, model_folder = find_model(config["architectures"][0], config), ModelFolder(folder)
    specs = matrix_specs(model.forward, model.config.from_folder(model_folder), policy)
    grids = {module: spec.grid for module, spec in specs.items()}
    with model_folder.open_weights() as reader:
        save_quantized(model_folder, reader, tmp_path / "packed", grids, policy.describe(), instant_quant)
    packed = load(tmp_path / "packed", dtype="fp16", **device)
    direct = load(folder, quant=policy, dtype="fp16", **device)
    assert (str(packed.quant), packed.head) == (mode, direct.head)
    np.testing.assert_array_equal(logits(packed), logits(direct))


@pytest.mark.parametrize("name", ["baichuan2_13b", "chatglm1", "chatglm2", "gemma2", "glm4", "phi3", "qwen_v1"])
def test_fused_and_permuted_and_normalized_rows_are_quantized_before_as_well(
    golden: Path, tmp_path: Path, name: str
) -> None:
    """A head that is normalized while loading has other codes before and after, and nearly the same numbers."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(golden / name / file, tmp_path)
    policy, source = QuantPolicy.parse("a16w8"), ModelFolder(tmp_path)
    model = find_model(source.architecture, source.config)
    specs = matrix_specs(model.forward, model.config.from_folder(source), policy)
    with source.open_weights() as reader:
        grids = {module: spec.grid for module, spec in specs.items()}
        save_quantized(source, reader, tmp_path / "packed", grids, policy.describe(), instant_quant)
    expected = load_file(golden / name / "golden.safetensors")
    texts = [[*expected[f"{prompt}.input_ids"]] for prompt in PROMPTS]
    found = []
    for folder in (tmp_path / "packed", tmp_path):
        sequences = generate(load(folder, quant="a16w8", dtype="fp32", threads=2, kv_memory="16MB"), texts, 1)
        found.append(np.concatenate([np.stack(each.logits) for each in sequences]))
    if "baichuan2" in name:
        assert np.abs(found[0] - found[1]).max() <= 1e-2 * np.abs(found[1]).max()
    else:
        np.testing.assert_array_equal(*found)
    exact = np.concatenate([expected[f"{prompt}.logits"] for prompt in PROMPTS])
    rows = np.concatenate(
        [expected[f"{prompt}.logits_positions"] + sum(map(len, texts[:at])) for at, prompt in enumerate(PROMPTS)]
    )
    assert 1e-3 < np.sqrt(np.mean((found[0][rows] - exact) ** 2)) < 0.1


@pytest.mark.parametrize("mode", ["a16w8", "a16w4-g32", "a8w8"])
def test_every_tier_gives_the_same_bits(tmp_path: Path, mode: str) -> None:
    """Also in other batches and chunks, and with other numbers of threads."""
    from dashinfer_lite import _native

    folder = write_model_folder(tmp_path, {**SMALL, "torch_dtype": "bfloat16"})
    runs = []
    for tier in [name for name, usable, _ in _native.tiers() if usable]:
        runs.append(logits(load(folder, quant=mode, isa=tier, threads=1 + len(runs) % 3)))
    assert all(np.array_equal(run, runs[0]) for run in runs)
    model = load(folder, quant=mode, threads=2)
    loop = Loop(model.executable, model.program)
    alone = [np.stack(loop.generate([prompt], 3)[0].logits) for prompt in PROMPT_IDS]
    model.close()
    assert np.array_equal(np.concatenate(alone), runs[0])


# ---- options and errors --------------------------------------------------------------------------------------------


def test_what_is_loaded_is_said(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "plain", SMALL)
    shown = []
    for options in ({}, {"quant": "int8"}, {"quant": "a8w8-g32", "head": "bf16"}, {"head": "int8"}):
        model = load(folder, device="reference", **options)
        shown.append((str(model.quant), model.head))
        model.close()
    assert shown == [("none", "fp32"), ("a16w8", "int8"), ("a8w8-g32", "fp32"), ("none", "int8")]


def test_a_folder_of_integers_takes_modes_of_its_own_bits_alone(tmp_path: Path) -> None:
    config, tensors, _ = gptq(SMALL, bits=8)
    folder = write_folder(tmp_path, config, tensors)
    model = load(folder, device="reference", quant="a8w8")
    assert (str(model.quant), model.head) == ("a8w8-g16", "int8")
    model.close()
    with pytest.raises(RequestError, match=r"the folder holds .* in 8 bits"):
        load(folder, device="reference", quant="a16w4")


@pytest.mark.parametrize("options", [{"quant": "int3"}, {"quant": 8}, {"head": "fp8"}])
def test_unknown_modes_are_request_errors(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        load(write_model_folder(tmp_path, SMALL), device="reference", **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_value_that_is_not_finite_is_an_error_that_names_its_tensor(
    tmp_path: Path, value: float, tensor: str, device: dict[str, Any]
) -> None:
    tensors = random_tensors(SMALL)
    tensors[tensor][5, 7] = value
    folder = write_model_folder(tmp_path, SMALL, tensors)
    with pytest.raises(ModelError, match=f"{tensor} holds values that are not finite"):
        load(folder, quant="a16w8", **device)
    load(folder, quant="none", **device).close()
