"""The CPU device on every tier, in fp32 and in the model's own 16-bit type, against each family's reference.

All prompts run together, and on the best tier in other orders and in chunks.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_rules import (
    LIMITS,
    MODELS,
    NEW_TOKENS,
    PROMPTS,
    Expected,
    check_16_bit,
    check_fp32,
    error_of,
    expected_of,
    forced,
    own_type,
    prompts_of,
)
from stepping import Loop, Sequence, load

from dashinfer_lite.devices import open_device

# Each prompt stands in each place, each chunk size comes with another order than the one it is compared with.
VARIATIONS: list[tuple[tuple[str, ...], int | None]] = [
    (PROMPTS[::-1], None),
    (PROMPTS[1:] + PROMPTS[:1], 1),
    (PROMPTS[2:] + PROMPTS[:2], 7),
    (PROMPTS, 64),
]
if os.environ.get("DASHINFER_TEST_ALL"):
    VARIATIONS = [*itertools.product(itertools.permutations(PROMPTS), (None, 1, 7, 64))]


def _run(
    folder: Path,
    texts: list[list[int]],
    new_tokens: int,
    *,
    dtype: str = "f32",
    kv_dtype: str | None = None,
    tier: str | None = None,
    chunk: int | None = None,
    threads: int = 2,
) -> list[Sequence]:
    device = open_device("cpu", isa=tier, threads=threads)
    kv_dtype = kv_dtype or ("bf16" if dtype == "bf16" else "f32")
    executable, program = load(folder, device, dtype=dtype, kv_dtype=kv_dtype, limits=LIMITS)
    try:
        return Loop(executable, program).generate(texts, new_tokens, chunk=chunk)
    finally:
        executable.close()
        device.close()


def _generate(
    folder: Path, expected: Expected, order: tuple[str, ...] = PROMPTS, **options: Any
) -> dict[str, Sequence]:
    return dict(zip(order, _run(folder, prompts_of(expected, order), NEW_TOKENS, **options), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_fp32(golden: Path, name: str, tier: str) -> None:
    expected = expected_of(golden / name)
    for prompt, sequence in _generate(golden / name, expected, tier=tier).items():
        check_fp32(sequence, expected, prompt)


@pytest.mark.parametrize("name", MODELS)
def test_16_bit(golden: Path, name: str, tier: str) -> None:
    expected = expected_of(golden / name)
    sequences = _generate(golden / name, expected, tier=tier, dtype=own_type(golden / name))
    check_16_bit(sequences, expected, golden / name)


@pytest.mark.parametrize("name", MODELS)
def test_quantized_kv_cache(golden: Path, name: str) -> None:
    """With exact weights an 8-bit cache errs as little as 16-bit arithmetic; 4 bits, 17 times as coarse, as much more.

    The reference's tokens are fed, so that errors do not add up over diverging texts.
    """
    budget = json.loads((golden / name / "golden.json").read_text()).get("low_precision_reference_error") or {}
    exact, fine, coarse = (_forced_error(golden / name, cache) for cache in ("f32", "u8", "u4"))
    assert exact < 1e-3 < fine <= 1.2 * budget.get("rms", 0.03)
    assert 5 * fine < coarse < 25 * fine


def _forced_error(folder: Path, kv_dtype: str) -> float:
    """The rms error of the logits of fp32 weights over the reference's texts."""
    expected = expected_of(folder)
    texts = [forced(expected, prompt) for prompt in PROMPTS]
    sequences = _run(folder, texts, 1, kv_dtype=kv_dtype, chunk=40)
    return error_of(dict(zip(PROMPTS, sequences, strict=True)), expected)


@pytest.mark.parametrize("name", MODELS)
def test_order_and_chunks_change_no_bit(golden: Path, name: str) -> None:
    """Orders of arrival and chunk sizes give the same logits, bit for bit, on the best tier."""
    expected = expected_of(golden / name)
    for dtype in ("f32", own_type(golden / name)):
        base = _generate(golden / name, expected, dtype=dtype)
        for order, chunk in VARIATIONS:
            threads = 1 if chunk == 7 else 3
            got = _generate(golden / name, expected, order, dtype=dtype, chunk=chunk, threads=threads)
            for prompt in PROMPTS:
                same = np.array_equal(np.stack(base[prompt].logits), np.stack(got[prompt].logits))
                assert same, (dtype, order, chunk, prompt)
