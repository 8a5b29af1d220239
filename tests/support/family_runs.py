"""Made-up models of any family through a device, and what the family's formulas say about them."""

from __future__ import annotations

from typing import Any

import numpy as np
from dense_families import family_logits
from graphs import Weights
from stepping import Loop

from dashinfer_lite.devices import open_device
from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights.loader import load_weights

LIMITS = Limits(max_tokens=64, tail_rows=16, max_seqs=2)
NEW_TOKENS = 4


class CalmWeights(Weights):
    """Small biases, and norms near 1: with large ones a softmax makes single bits of fp32 count."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.norm = 0.0 if config["model_type"].startswith("gemma") else 1.0  # Gemma adds 1 itself

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
    device: Any,
    config: dict[str, Any],
    weights: Weights,
    prompt: list[int],
    *,
    dtype: Any = "f32",
    chunk: int | None = None,
    quant: Any = None,
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


def check_formulas(config: dict[str, Any], prompt: list[int], chunk: int | None = None) -> None:
    """In fp32, both devices compute what the family's formulas say, however the prompt is cut."""
    weights = CalmWeights(config)
    device = open_device("cpu", threads=2)
    got, drawn = run(device, config, weights, prompt, chunk=chunk)
    device.close()
    wanted = family_logits(config, weights.tensors, prompt + drawn[:-1], len(prompt))
    tolerance = 3e-4 * max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=0)
    reference, again = run(ReferenceDevice(), config, weights, prompt)
    rows = len(got) if again == drawn else len(prompt)  # two tokens may be equally good
    np.testing.assert_allclose(reference[:rows], got[:rows], atol=tolerance, rtol=0)
