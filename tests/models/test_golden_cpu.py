"""The CPU device on every tier, in fp32 and in the model's own 16-bit type, against each family's reference.

Rule 1: fp32 logits within 1e-3 and all tokens. Rule 2: in 16 bit an error of at most twice (rms) and three times
(maximum) the reference's own, and the reference's tokens up to the first step whose margin is under four times that
rms. All prompts run together.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from stepping import Loop, Sequence, load

from dashinfer_lite.devices import open_device
from dashinfer_lite.graph.program import Limits

MODELS = ("llama2", "llama3_2", "mistral", "qwen1_5", "qwen2_5", "qwen3", "qwen2_moe", "qwen3_moe")
PROMPTS = ("p0", "p1", "p2")
NEW_TOKENS = 48
LIMITS = Limits(max_tokens=128, tail_rows=16, max_seqs=4)


def _generate(
    folder: Path, tier: str, dtype: str, order: tuple[str, ...] = PROMPTS, chunk: int | None = None, threads: int = 2
) -> tuple[dict[str, np.ndarray], dict[str, Sequence]]:
    expected = load_file(folder / "golden.safetensors")
    device = open_device("cpu", isa=tier, threads=threads)
    kv_dtype = "bf16" if dtype == "bf16" else "f32"
    executable, program = load(folder, device, dtype=dtype, kv_dtype=kv_dtype, limits=LIMITS)
    try:
        prompts = [expected[f"{prompt}.input_ids"].tolist() for prompt in order]
        sequences = Loop(executable, program).generate(prompts, NEW_TOKENS, chunk=chunk)
    finally:
        executable.close()
        device.close()
    return expected, dict(zip(order, sequences, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_fp32(golden: Path, name: str, tier: str) -> None:
    """Rule 1 on each tier."""
    expected, sequences = _generate(golden / name, tier, "f32")
    for prompt, sequence in sequences.items():
        rows = expected[f"{prompt}.logits_positions"]
        error = np.abs(np.stack([sequence.logits[row] for row in rows]) - expected[f"{prompt}.logits"]).max()
        assert error <= 1e-3, (prompt, error)
        assert sequence.drawn == expected[f"{prompt}.greedy_ids"].tolist(), prompt


@pytest.mark.parametrize("name", MODELS)
def test_16_bit(golden: Path, name: str, tier: str) -> None:
    """Rule 2 on each tier; the goldens of these families are bf16."""
    budget: dict[str, Any] = json.loads((golden / name / "golden.json").read_text())["low_precision_reference_error"]
    assert budget["dtype"] == "bfloat16"
    expected, sequences = _generate(golden / name, tier, "bf16")
    errors = []
    for prompt, sequence in sequences.items():
        rows = expected[f"{prompt}.logits_positions"]
        errors.append(np.stack([sequence.logits[row] for row in rows]) - expected[f"{prompt}.logits"])
        unsure = np.flatnonzero(expected[f"{prompt}.greedy_margin"] < 4 * budget["rms"])
        sure = int(unsure[0]) if len(unsure) else NEW_TOKENS
        assert sequence.drawn[:sure] == expected[f"{prompt}.greedy_ids"].tolist()[:sure], prompt
    error = np.concatenate([part.ravel() for part in errors])
    assert np.sqrt(np.mean(error**2)) <= 2 * budget["rms"]
    assert np.abs(error).max() <= 3 * budget["max_abs"]


@pytest.mark.parametrize("name", MODELS)
def test_quantized_kv_cache(golden: Path, name: str) -> None:
    """With exact weights an 8-bit cache errs as little as 16-bit arithmetic; 4 bits, 17 times as coarse, as much more.

    The reference's tokens are fed, so that errors do not add up over diverging texts.
    """
    budget: dict[str, Any] = json.loads((golden / name / "golden.json").read_text())["low_precision_reference_error"]
    exact, fine, coarse = (_forced_error(golden / name, cache) for cache in ("f32", "u8", "u4"))
    assert exact < 1e-3 < fine <= 1.2 * budget["rms"]
    assert 5 * fine < coarse < 25 * fine


def _forced_error(folder: Path, kv_dtype: str) -> float:
    """The rms error of the logits of fp32 weights over the reference's texts."""
    expected = load_file(folder / "golden.safetensors")
    device = open_device("cpu", threads=2)
    executable, program = load(folder, device, dtype="f32", kv_dtype=kv_dtype, limits=LIMITS)
    try:
        texts = [
            [*expected[f"{prompt}.input_ids"].tolist(), *expected[f"{prompt}.greedy_ids"].tolist()[:-1]]
            for prompt in PROMPTS
        ]
        sequences = Loop(executable, program).generate(texts, 1, chunk=40)
    finally:
        executable.close()
        device.close()
    errors = [
        np.stack([sequence.logits[row] for row in expected[f"{prompt}.logits_positions"]])
        - expected[f"{prompt}.logits"]
        for prompt, sequence in zip(PROMPTS, sequences, strict=True)
    ]
    return float(np.sqrt(np.mean(np.concatenate([part.ravel() for part in errors]) ** 2)))


@pytest.mark.parametrize("name", MODELS)
def test_order_and_chunks_change_no_bit(golden: Path, name: str) -> None:
    """Every order of arrival and every chunk size gives the same logits, bit for bit, on the best tier."""
    for dtype in ("f32", "bf16"):
        _, base = _generate(golden / name, _best_tier(), dtype)
        variations = [(order, None) for order in itertools.permutations(PROMPTS)] + [
            (PROMPTS, 1),
            (PROMPTS, 7),
            (PROMPTS, 64),
        ]
        for order, chunk in variations[1:]:
            _, got = _generate(golden / name, _best_tier(), dtype, order, chunk, threads=1 if chunk == 7 else 3)
            for prompt in PROMPTS:
                assert np.array_equal(np.stack(base[prompt].logits), np.stack(got[prompt].logits)), (
                    dtype,
                    order,
                    chunk,
                    prompt,
                )


def _best_tier() -> str:
    from dashinfer_lite import _native

    return next(name for name, runs, _ in _native.tiers() if runs)
