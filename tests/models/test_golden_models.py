"""The reference device computes what each family's reference implementation computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_rules import (
    LIMITS,
    MODELS,
    NEW_TOKENS,
    PROMPTS,
    check_16_bit_forced,
    check_fp32,
    expected_of,
    forced,
    own_type,
    prompts_of,
)
from stepping import Loop, load

from dashinfer_lite.devices.reference import ReferenceDevice

# align, chunk, order, on_device
ARRANGEMENTS = {
    "whole-prompts": (1, None, PROMPTS, False),
    "chunks-of-7-reversed": (1, 7, PROMPTS[::-1], False),
    "token-by-token-padded": (32, 1, PROMPTS, False),
    "last-token-on-device": (32, None, PROMPTS[1:] + PROMPTS[:1], True),
}


def _one_each() -> list[object]:
    """Every folder in one arrangement, all arrangements in turn; the other pairs belong to the full matrix."""
    return [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=() if at % len(ARRANGEMENTS) == turn else pytest.mark.slow)
        for at, name in enumerate(MODELS)
        for turn, kind in enumerate(ARRANGEMENTS)
    ]


@pytest.mark.parametrize(("name", "kind"), _one_each())
def test_fp32_equals_the_reference(golden: Path, name: str, kind: str) -> None:
    align, chunk, order, on_device = ARRANGEMENTS[kind]
    expected = expected_of(golden / name)
    executable, program = load(golden / name, ReferenceDevice(col_align=align, head_align=align), limits=LIMITS)
    prompts = prompts_of(expected, order)
    sequences = Loop(executable, program).generate(prompts, NEW_TOKENS, chunk=chunk, on_device=on_device)
    for prompt, sequence in zip(order, sequences, strict=True):
        check_fp32(sequence, expected, prompt)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_its_batch(golden: Path, name: str) -> None:
    executable, program = load(golden / name, limits=LIMITS)
    prompts = prompts_of(expected_of(golden / name))
    together = Loop(executable, program).generate(prompts, 4, chunk=5)
    for prompt, sequence in zip(prompts[:2], together, strict=False):
        (alone,) = Loop(executable, program, seed=1).generate([prompt], 4)
        assert alone.drawn == sequence.drawn
        np.testing.assert_allclose(alone.logits, sequence.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_16_bit_stays_within_the_error_of_the_reference_in_16_bit(golden: Path, name: str) -> None:
    """Rule 2 in the type that the folder is stored in, teacher-forced."""
    expected, dtype = expected_of(golden / name), own_type(golden / name)
    kv_dtype = "bf16" if dtype == "bf16" else "f32"
    executable, program = load(golden / name, dtype=dtype, kv_dtype=kv_dtype, limits=LIMITS)
    loop = Loop(executable, program)
    sequences = {}
    for prompt in PROMPTS:
        (sequences[prompt],) = loop.generate([forced(expected, prompt)], 1)
    check_16_bit_forced(sequences, expected, golden / name)
