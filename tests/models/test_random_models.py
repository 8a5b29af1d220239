"""Random small models of every family: the CPU against an independent forward pass, the reference, and itself.

Widths are no multiples of anything, head sizes go from 8 to 256; every option and rope scaling of a family turns up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dashinfer_lite.model_defs import find_model
from dense_families import family_logits
from graphs import Weights
from hypothesis import given
from hypothesis import strategies as st
from one_op import examples
from random_configs import FAMILIES, configs
from stepping import Loop

from dashinfer_lite.devices import open_device
from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.weights.loader import load_weights

LIMITS = Limits(max_tokens=64, tail_rows=16, max_seqs=2)
NEW_TOKENS = 4
QUANTS = ("a16w8", "a16w4", "a16w4-g32", "a8w8-g64")


class CalmWeights(Weights):
    """Small biases, and norms near 1: with large ones a softmax makes single bits of fp32 count."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.norm = 0.0 if family.startswith("gemma") else 1.0  # Gemma adds 1 itself

    def _make(self, name: str, rows: int, columns: int) -> np.ndarray:  # type: ignore[override]
        values = super()._make(name, rows, columns)
        if columns:
            return values
        return 1.5 * (values - 1) if name.endswith(".bias") else values - 1 + np.float32(self.norm)


def prompt_of(config: dict[str, Any], length: int) -> list[int]:
    """Random tokens; a prefix model's hold its gap and where its answer begins."""
    rng = np.random.default_rng(length)
    prompt: list[int] = rng.integers(21, config.get("vocab_size", config.get("padded_vocab_size")), length).tolist()
    if "inner_hidden_size" in config:
        prompt[rng.integers(length)] = config["gmask_token_id"]
        prompt.insert(int(rng.integers(length + 1)), config["bos_token_id"])
    return prompt


def run(
    device: Any, config: dict[str, Any], weights: Weights, prompt: list[int], dtype: Any, chunk: int | None, quant: Any
) -> tuple[np.ndarray, list[int]]:
    """Logits of all rows, and the tokens drawn."""
    model = find_model(config["architectures"][0], config)
    program = build(
        model.forward, model.config.from_dict(config), device.info, dtype=dtype,
        kv_dtype="bf16" if dtype == "bf16" else "f32", limits=LIMITS, blocks=2, quant=quant,
    )  # fmt: skip
    executable = device.create(program)
    try:
        load_weights(program, weights.provide(program), executable)
        (sequence,) = Loop(executable, program).generate([prompt], NEW_TOKENS, chunk=chunk)
    finally:
        executable.close()
    return np.stack(sequence.logits), sequence.drawn


@pytest.mark.parametrize("family", FAMILIES)
@examples(6)
@given(data=st.data())
def test_fp32(family: str, data: st.DataObject) -> None:
    """Both devices compute what the family's formulas say, however the prompt is cut."""
    config = data.draw(configs(family))
    prompt = prompt_of(config, data.draw(st.integers(1, 50)))
    weights = CalmWeights(family)
    device = open_device("cpu", threads=2)
    got, drawn = run(device, config, weights, prompt, "f32", data.draw(st.sampled_from([None, 1, 7])), None)
    device.close()
    wanted = family_logits(config, weights.tensors, prompt + drawn[:-1], len(prompt))
    tolerance = 3e-4 * max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=0)
    reference, again = run(ReferenceDevice(), config, weights, prompt, "f32", None, None)
    rows = len(got) if again == drawn else len(prompt)  # two tokens may be equally good
    np.testing.assert_allclose(reference[:rows], got[:rows], atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@examples(3)
@given(data=st.data())
def test_integers_and_bf16(family: str, data: st.DataObject) -> None:
    """Every mode runs on every family, and the CPU's bits are near the reference's."""
    config = data.draw(configs(family))
    prompt = prompt_of(config, data.draw(st.integers(1, 50)))
    weights = CalmWeights(family)
    mode, dtype = data.draw(st.sampled_from(QUANTS)), data.draw(st.sampled_from(["f32", "bf16"]))
    device = open_device("cpu", threads=2)
    got, drawn = run(device, config, weights, prompt, dtype, None, QuantPolicy.parse(mode))
    device.close()
    wanted, _ = run(ReferenceDevice(), config, weights, prompt, dtype, None, QuantPolicy.parse(mode))
    prefill = len(prompt)
    error = np.abs(got[:prefill] - wanted[:prefill]).max() / np.abs(wanted[:prefill]).max()
    assert error <= (2e-2 if dtype == "f32" else 5e-2), (mode, dtype)
    assert len(drawn) == NEW_TOKENS
