"""The op "sample" through a device: draws, scores and reports equal the reference's, whose formulas have own tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Bench, Maker, Span, both, each, examples, fill_step, rounded

from dashinfer_lite.devices.step import RAW_LOGPROB, STATUS_EMPTY, STATUS_NAN, STATUS_OK

TAIL = 40
TOPS = 5


def make(device: Any, vocab: int) -> Maker:
    """Slot 0 takes logits a token; the tail samples from the rows that are asked for."""
    maker = Maker(device.info, vocab=vocab, tail_rows=TAIL, logprobs=TOPS)
    x, h, rows = maker.slot(vocab), maker.slot(vocab), maker.slot(vocab, rows="R")
    maker.op("cast", (x,), (h,))
    maker.tail_op("gather_rows", (h,), (rows,))
    maker.tail_op("sample", (rows,), V=vocab)
    return maker


def sample(bench: Bench, logits: Array, **fields: Any) -> dict[str, Array]:
    """Samples every row, the last ones first; `fields` are set in all records, arrays one element a row."""
    rows = len(logits)
    bench.put(0, logits)
    step = fill_step(bench.step, [Span(rows, logits=range(rows)[::-1])])
    for name, value in fields.items():
        step.sample[name][:rows] = np.broadcast_to(value, rows)[::-1]
    bench.submit(step)
    names = ("token", "status", "logprob", "rank", "top_ids", "top_logprobs", "logits")
    return {name: getattr(step, f"out_{name}")[:rows][::-1].copy() for name in names}


@examples(40)
@given(
    rows=st.integers(1, 30),
    vocab=st.integers(1, 300),
    spread=st.sampled_from([0.0, 1.0, 10.0]),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.7, 1.0, 3.0]),
            "top_k": st.sampled_from([0, 1, 5, 1000]),
            "top_p": st.sampled_from([1.0, 0.9, 0.3]),
            "min_p": st.sampled_from([0.0, 0.05]),
            "n_top": st.integers(0, TOPS),
            "flags": st.sampled_from([0, RAW_LOGPROB]),
        }
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_draws_and_reports(
    device: Any, rows: int, vocab: int, spread: float, options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rounded(spread * rng.standard_normal((rows, vocab)), "f32")
    records = {
        "seed": rng.integers(0, 2**63, rows),
        "position": rng.integers(0, 2**31, rows),
        "sample_index": rng.integers(0, 9, rows),
    }
    with both(device, make(device, vocab)) as benches:
        got, expected = (sample(bench, logits, **options, **records) for bench in benches)
    np.testing.assert_array_equal(got["logits"], logits)
    same_results(got, expected)
    if options["temperature"] == 0:
        np.testing.assert_array_equal(got["token"], logits.argmax(-1))


def test_rows_that_are_searched_together(device: Any) -> None:
    """More rows than a band, some greedy and some not: the largest logits of neighbours are found in one pass."""
    rng = np.random.default_rng(3)
    rows, vocab = 70, 333
    logits = rounded(rng.standard_normal((rows, vocab)), "f32")
    logits[5, 100] = logits[5, 200] = logits[6, 332] = 9.0
    logits[7, 17] = np.nan
    records = {
        "temperature": np.where(np.arange(rows) % 3 == 2, 0.8, 0.0),
        "seed": rng.integers(0, 2**63, rows),
        "flags": np.where(np.arange(rows) % 5 == 4, RAW_LOGPROB, 0),
    }
    with both(device, make(device, vocab)) as benches:
        got, expected = (sample(bench, logits, **records) for bench in benches)
    same_results(got, expected)
    assert got["status"].tolist() == [STATUS_NAN if row == 7 else STATUS_OK for row in range(rows)]
    greedy = [row for row in range(rows) if row % 3 != 2 and row != 7]
    np.testing.assert_array_equal(got["token"][greedy], logits[greedy].argmax(-1))


def same_results(got: dict[str, Array], expected: dict[str, Array]) -> None:
    """Tokens and ranks are equal; log probabilities differ by the summation's rounding."""
    for name in ("token", "status", "rank", "top_ids"):
        np.testing.assert_array_equal(got[name], expected[name], name)
    reported = got["top_ids"] >= 0
    for mine, theirs in (
        (got["logprob"], expected["logprob"]),
        (got["top_logprobs"][reported], expected["top_logprobs"][reported]),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=2e-6)


@examples(20)
@given(rows=st.integers(1, 20), vocab=st.integers(2, 200), seed=st.integers(0, 2**32 - 1))
def test_history_bias_bans_and_masks(device: Any, rows: int, vocab: int, seed: int) -> None:
    """What a record points at is host memory of the caller."""
    rng = np.random.default_rng(seed)
    logits = rounded(rng.standard_normal((rows, vocab)), "f32")
    history = rng.integers(0, vocab, 40).astype(np.int32)
    bias_ids = rng.integers(0, vocab, 3).astype(np.int32)
    bias = rounded(rng.standard_normal(3), "f32")
    banned = rng.integers(1, vocab, 4).astype(np.int32)
    mask = np.full(-(-vocab // 32), 0xFFFFFFFF, np.uint32)
    mask[0] &= ~np.uint32(2)
    lists = {"history": history, "bias_ids": bias_ids, "bias_values": bias, "banned_ids": banned, "mask": mask}
    fields = {name: array.ctypes.data for name, array in lists.items()} | {
        "history_len": 40,
        "prompt_len": 25,
        "n_bias": 3,
        "n_banned": 4,
    }
    fields |= {
        "temperature": 1.0,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "no_repeat_ngram": 2,
    }
    with both(device, make(device, vocab)) as benches:
        got, expected = (sample(bench, logits, **fields, position=np.arange(rows), seed=seed) for bench in benches)
    same_results(got, expected)
    drawn = got["token"][got["status"] == STATUS_OK]
    assert not np.isin(drawn, [1, *banned]).any()


def test_scored_rows(device: Any) -> None:
    """A target is returned with its log probability and rank; nothing is drawn."""
    rng = np.random.default_rng(3)
    logits = rounded(rng.standard_normal((20, 77)), "f32")
    targets = rng.integers(0, 77, 20)
    with each(device, make(device, 77)) as benches:
        for bench in benches:
            got = sample(bench, logits, target=targets, temperature=1.0, n_top=TOPS, flags=RAW_LOGPROB)
            x = logits.astype(np.float64)
            logprobs = x - np.log(np.exp(x).sum(-1, keepdims=True))
            np.testing.assert_array_equal(got["token"], targets)
            np.testing.assert_allclose(got["logprob"], logprobs[np.arange(20), targets], atol=4e-6)
            np.testing.assert_array_equal(got["rank"], 1 + (x > x[np.arange(20), targets][:, None]).sum(-1))
            np.testing.assert_array_equal(got["top_ids"], np.argsort(-x, kind="stable")[:, :TOPS])


def test_rows_that_cannot_be_sampled(device: Any) -> None:
    """NaN and nothing-left are a status of their row alone."""
    logits = np.tile(np.arange(40, dtype=np.float32), (5, 1))
    logits[1, 39] = np.nan
    logits[2] = -np.inf
    logits[3, 7] = np.inf
    with each(device, make(device, 40)) as benches:
        for bench in benches:
            for temperature in (0.0, 1.0):
                got = sample(bench, logits, temperature=temperature, flags=RAW_LOGPROB)
                assert got["status"].tolist() == [STATUS_OK, STATUS_NAN, STATUS_EMPTY, STATUS_OK, STATUS_OK]
                assert got["token"][3] == 7 and got["logprob"][3] == 0
