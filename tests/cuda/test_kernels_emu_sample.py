"""The CUDA sampler against the reference: the same tokens, statuses, ranks and alternatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_kernels import Array, Kernels, Memory, make, rows, view

from dashinfer_lite.devices.sampling_reference import _edited, sample_row
from dashinfer_lite.devices.step import SAMPLE_DTYPE, STATUS_OK

TOP = 8


@pytest.mark.parametrize("vocab", [1, 31, 257, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_sample(kernels: Kernels, vocab: int, seed: int) -> None:
    check(kernels, vocab, seed)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(6))
def test_more_samples(kernels: Kernels, batch: int) -> None:
    for seed in range(50 * batch, 50 * batch + 50):
        check(kernels, int(np.random.default_rng(seed).integers(1, 3000)), 1000 + seed)


def test_a_large_vocabulary(kernels: Kernels) -> None:
    check(kernels, 40_000, 3, count=1)


def test_what_is_forbidden_is_not_drawn(kernels: Kernels) -> None:
    """The best token, forbidden by a thread of another warp than the one that reads it, in many orders of warps."""

    def forbid(memory: Memory, row: Array, s: Any) -> None:
        row[5] = 100
        history = memory.put(np.array([-1] * 40 + [5] * 20, np.int32))
        s["history"], s["history_len"], s["prompt_len"] = history.ctypes.data, len(history), 0
        s["temperature"], s["no_repeat_ngram"], s["target"], s["n_bias"], s["mask"] = 0, 1, -1, 0, 0

    check(kernels, 257, 0, 16, forbid)


Change = Callable[[Memory, Array, Any], None]


def check(kernels: Kernels, vocab: int, seed: int, count: int = 4, change: Change | None = None) -> None:
    """Random rows with random options; every number that is an integer is equal, and the counts are left zero."""
    rng, memory = np.random.default_rng(seed), Memory()
    logits = np.full((count, vocab + 8), np.nan, np.float32)
    samples = np.zeros(count, SAMPLE_DTYPE)
    for r in range(count):
        logits[r, :vocab] = random_row(rng, vocab)
        choose(rng, memory, samples[r], vocab, r)
        if change is not None:
            change(memory, logits[r], samples[r])
    held = memory.put(logits)
    integers = {name: memory.full((count,), np.int32, -5) for name in ("out_token", "out_status", "out_rank")}
    logprob, last = memory.full((count,), np.float32, np.nan), memory.full((count,), np.int32, -9)
    counts, work = memory.full((count, vocab), np.uint32, 0), memory.full((count, vocab), np.float32, np.nan)
    ids, logprobs = memory.full((count, TOP), np.int32, 7), memory.full((count, TOP), np.float32, 7)
    args = make(
        "SampleArgs",
        logits=view(held),
        V=vocab,
        samples=memory.put(samples.view(np.uint8)),
        row_work=work,
        counts=counts,
        work_stride=vocab,
        last_token=last,
        **integers,
        out_logprob=logprob,
        out_top_ids=ids,
        out_top_logprobs=logprobs,
        max_top=TOP,
        rows=rows(count),
    )
    kernels.run("sample", (count,), [64, 128, 256][seed % 3], args)
    assert not counts.any()
    for r in range(count):
        with np.errstate(all="ignore"):
            expected = sample_row(logits[r, :vocab], samples[r], TOP)
        got = [int(integers[name][r]) for name in ("out_token", "out_status", "out_rank")]
        assert got == [expected.token, expected.status, expected.rank], (seed, r, samples[r])
        np.testing.assert_allclose(logprob[r], expected.logprob, rtol=1e-6, atol=1e-6)
        if was_edited(samples[r], logits[r, :vocab]):
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal(work[r], _edited(logits[r, :vocab], samples[r]))
        found = len(expected.top_ids)
        np.testing.assert_array_equal(ids[r], [*expected.top_ids, *[-1] * (TOP - found)])
        np.testing.assert_allclose(logprobs[r, :found], expected.top_logprobs, rtol=1e-6, atol=1e-6)
        fed = samples[r]["slot"] >= 0 and samples[r]["target"] < 0 and expected.status == STATUS_OK
        assert last[r] == (expected.token if fed else -9)


def was_edited(s: Any, row: Array) -> bool:
    """Whether the row got as far as its edits, and had some."""
    if s["target"] >= 0 or np.isnan(row).any() or row.max() == -np.inf:
        return False
    penalties = (s["repetition_penalty"], s["presence_penalty"], s["frequency_penalty"]) != (1, 0, 0)
    return bool(
        s["mask"] or s["n_banned"] or s["n_bias"] or (s["history_len"] and (penalties or s["no_repeat_ngram"] > 0))
    )


def random_row(rng: np.random.Generator, vocab: int) -> Array:
    """Logits: flat and steep, with ties, infinities and sometimes a NaN."""
    row = rng.standard_normal(vocab).astype(np.float32) * rng.choice([0.1, 1, 5])
    if rng.random() < 0.4:
        row = np.round(row * 2) / 2
    if rng.random() < 0.1:
        row[rng.integers(vocab)] = np.inf
    if rng.random() < 0.15:
        row[rng.random(vocab) < 0.5] = -np.inf
    if rng.random() < 0.05:
        row[rng.integers(vocab)] = np.nan
    if rng.random() < 0.05:
        row[:] = -np.inf
    return row


def choose(rng: np.random.Generator, memory: Memory, s: Any, vocab: int, r: int) -> None:
    """Fills in random options."""

    def listed(values: Array) -> int:
        return int(memory.put(values).ctypes.data)

    s["seed"], s["sample_index"], s["position"] = rng.integers(2**63), rng.integers(5), rng.integers(1000)
    s["temperature"] = rng.choice([0, 0.3, 1, 2, np.inf])
    s["top_k"], s["top_p"], s["min_p"] = (
        rng.choice([0, 1, 3, vocab // 2, vocab + 3]),
        rng.choice([1, 0.9, 0.5, 0.01, 0]),
        rng.choice([0, 0, 0.1, 2]),
    )
    s["repetition_penalty"] = rng.choice([1, 1, 1.3])
    s["presence_penalty"], s["frequency_penalty"] = rng.choice([0, 0.5]), rng.choice([0, 0.2])
    s["no_repeat_ngram"], s["n_top"] = rng.choice([0, 0, 1, 2, 3]), rng.choice([0, 1, 5, 20])
    s["target"], s["slot"], s["flags"] = rng.choice([-1, -1, -1, 0, vocab + 1]), rng.choice([-1, r]), rng.integers(2)
    n = int(rng.integers(0, 60))
    if n:
        s["history"] = listed(rng.integers(-1, min(vocab + 2, 12), n).astype(np.int32))
    s["history_len"], s["prompt_len"] = n, rng.integers(0, n + 1)
    if rng.random() < 0.5:
        s["n_bias"] = 7
        s["bias_ids"] = listed(rng.integers(-1, vocab + 1, 7).astype(np.int32))
        s["bias_values"] = listed(rng.standard_normal(7).astype(np.float32))
    if rng.random() < 0.5:
        s["n_banned"], s["banned_ids"] = 3, listed(rng.integers(-1, vocab + 1, 3).astype(np.int32))
    if rng.random() < 0.5:
        s["mask"] = listed(rng.integers(0, 2**32, (vocab + 31) // 32, dtype=np.uint64).astype(np.uint32))
