"""Quantized mixtures of experts: each checkpoint is the model that it stands for, each mode computes by its formula.

What is left beside the weights' own numbers is the rounding of activations; routers and gates are never quantized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import random_tensors, tiny_config, write_model_folder
from quantized_folders import awq, fp8, gptq, own, write_folder
from stepping import Loop

from dashinfer_lite.errors import RequestError
from dashinfer_lite.graph.instant_quant import instant_quant
from dashinfer_lite.graph.quant import QuantPolicy, QuantSpec, matrix_specs
from dashinfer_lite.loading import LoadedModel, Options, load_model
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.grid import dequantize
from dashinfer_lite.weights.save_quantized import save_quantized

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [35, 8, 97, 9, 32, 38, 46], [2]]
QWEN = tiny_config("qwen2_moe", moe_intermediate_size=40, shared_expert_intermediate_size=56)
MIXTRAL = tiny_config("mixtral", num_hidden_layers=1)
LINEARS = {"qwen2_moe": 2 * (4 + 3 * 7 + 3) + 1, "mixtral": 4 + 3 * 4 + 1}
CHECKPOINTS = {
    "gptq-4": lambda config: gptq(config),
    "gptq-8-v2": lambda config: gptq(config, bits=8, version=2),
    "gptq-4-act-order": lambda config: gptq(config, act_order=True),
    "gptq-4-expert-orders": lambda config: gptq(config, act_order=True, expert_orders=True),
    "awq": lambda config: awq(config, group=8),
    "fp8": lambda config: fp8(config),
    "own-4": lambda config: own(config),
}


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(folder, Options(**{"kv_memory": "4MB", **options}))


def logits(model: LoadedModel) -> np.ndarray:
    """Logits of all rows of three prompts and a few drawn tokens, in two chunks."""
    try:
        sequences = Loop(model.executable, model.program).generate(PROMPTS, 3, chunk=5)
    finally:
        model.close()
    return np.concatenate([np.stack(each.logits) for each in sequences])


def check_close(got: np.ndarray, wanted: np.ndarray) -> None:
    """16-bit activations: one part in 65000 of the largest of a group, a few times over."""
    assert np.abs(got - wanted).max() <= 2e-3 * np.abs(wanted).max()


def dtypes(model: LoadedModel) -> dict[str, str]:
    """The type of each matrix by the end of its name."""
    return {spec.name.rpartition(".mlp.")[2]: spec.dtype for spec in model.program.weights if spec.kind == "linear"}


def specs_of(folder: Path, policy: QuantPolicy) -> dict[str, QuantSpec]:
    """What happens to each module."""
    found = ModelFolder(folder)
    model = find_model(found.architecture)
    return matrix_specs(model.forward, model.config.from_folder(found), policy)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_the_model_that_it_stands_for(tmp_path: Path, name: str, device: dict[str, Any]) -> None:
    """In fp32 to the bit; on its own grid within the rounding of activations."""
    changed, tensors, plain = CHECKPOINTS[name](QWEN)
    folder = write_folder(tmp_path / "packed", changed, tensors)
    wanted = logits(load(write_model_folder(tmp_path / "plain", QWEN, plain), **device))
    np.testing.assert_array_equal(logits(load(folder, dtype="fp32", **device)), wanted)
    model = load(folder, **device)
    types = dtypes(model)
    check_close(logits(model), wanted)
    assert types["gate"] == types["shared_expert_gate"] == "f32"
    # Experts of different orders of K have no common form of their input.
    stored = {"gptq-8-v2": "u8", "fp8": "f32"}.get(name, "u4")
    experts = "f32" if name == "gptq-4-expert-orders" else stored
    assert types["experts.*.down_proj"] == types["experts.*.{gate_proj,up_proj}"] == experts
    assert types["shared_expert.down_proj"] == stored


@pytest.mark.in_turn("config")
@pytest.mark.parametrize("config", [QWEN, MIXTRAL], ids=["qwen2_moe", "mixtral"])
@pytest.mark.parametrize("mode", ["a16w8", "a16w4-g32", "a8w8"])
def test_instant_quant_computes_with_the_weights_of_its_formula(
    tmp_path: Path, mode: str, config: dict[str, Any], device: dict[str, Any]
) -> None:
    plain = random_tensors(config)
    folder = write_model_folder(tmp_path / "plain", config, plain)
    specs = specs_of(folder, QuantPolicy.parse(mode))
    assert len(specs) == LINEARS[config["model_type"]]
    assert not any(module.endswith(("mlp.gate", "_gate", "moe.gate")) for module in specs)
    for module, spec in specs.items():
        name = f"{module}.weight"
        plain[name] = dequantize(instant_quant(plain[name], spec.grid), spec.grid)
    wanted = logits(load(write_model_folder(tmp_path / "rounded", config, plain), **device))
    got = logits(load(folder, quant=mode, **device))
    if mode.startswith("a16"):
        check_close(got, wanted)
    else:
        assert np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)) <= 0.15


@pytest.mark.parametrize("mode", ["a16w8", "a16w4-g32"])
def test_a_folder_that_was_quantized_before_gives_the_same_bits(
    tmp_path: Path, mode: str, device: dict[str, Any]
) -> None:
    folder = write_model_folder(tmp_path / "plain", QWEN)
    policy = QuantPolicy.parse(mode, overrides={"*.experts.*.down_proj": None})
    specs = specs_of(folder, policy)
    assert "model.layers.1.mlp.experts.6.up_proj" in specs and "model.layers.0.mlp.experts.0.down_proj" not in specs
    with ModelFolder(folder).open_weights() as reader:
        grids = {module: spec.grid for module, spec in specs.items()}
        save_quantized(ModelFolder(folder), reader, tmp_path / "packed", grids, policy.describe(), instant_quant)
    packed = logits(load(tmp_path / "packed", **device))
    np.testing.assert_array_equal(packed, logits(load(folder, quant=policy, **device)))


@pytest.mark.parametrize("mode", ["a16w8", "a16w4-g32", "a8w8"])
def test_every_tier_gives_the_same_bits(tmp_path: Path, mode: str) -> None:
    """Also each prompt alone, where its experts have other rows."""
    from dashinfer_lite import _native

    folder = write_model_folder(tmp_path, {**QWEN, "torch_dtype": "bfloat16"})
    runs = []
    for tier in [name for name, usable, _ in _native.tiers() if usable]:
        runs.append(logits(load(folder, quant=mode, isa=tier, threads=1 + len(runs) % 3)))
    assert all(np.array_equal(run, runs[0]) for run in runs)
    model = load(folder, quant=mode, threads=2)
    loop = Loop(model.executable, model.program)
    alone = [np.stack(loop.generate([prompt], 3)[0].logits) for prompt in PROMPTS]
    model.close()
    assert np.array_equal(np.concatenate(alone), runs[0])


def test_experts_of_a_layer_are_quantized_alike(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path, QWEN)
    policy = QuantPolicy.parse("a16w8", overrides={"*.0.mlp.experts.3.up_proj": "a16w4"})
    with pytest.raises(
        RequestError, match=r"all of model\.layers\.0\.mlp\.experts\.\*\.up_proj must be quantized alike"
    ):
        load(folder, quant=policy, device="reference")
