"""The native sampler against the NumPy reference, against brute force, and against the laws of chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dashinfer_lite.devices.sampling_reference import sample_row
from dashinfer_lite.devices.step import SAMPLE_DTYPE, STATUS_EMPTY, STATUS_NAN, STATUS_OK

SETTINGS = settings(
    deadline=None, print_blob=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DRAWS = 2000
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 50},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.3, "top_k": 1024, "min_p": 0.01},
)
SIZES = (1, 2, 31, 63, 64, 65, 128, 500, 3000)


def row_of(kind: str, vocab: int, seed: int) -> np.ndarray:
    """Logits of a kind: smooth, with many ties, peaked, with infinities, or all the same."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(vocab).astype(np.float32)
    match kind:
        case "ties":
            x = np.round(x * 2) / 2 * np.where(rng.random(vocab) < 0.5, 1, -0.0).astype(np.float32)
        case "peaked":
            x *= 12
        case "holes":
            x[rng.random(vocab) < 0.5] = -np.inf
        case "infinite":
            x[rng.integers(vocab, size=3)] = np.inf
        case "flat":
            x[:] = 3.5
        case "huge":
            x *= np.float32(5e37)
    return x


ROW_KINDS = st.sampled_from(["smooth", "ties", "peaked", "holes", "infinite", "flat", "huge"])


@st.composite
def options(draw: st.DrawFn, vocab: int) -> dict[str, Any]:
    """Any combination of options, ids out of range included."""
    tokens = st.integers(-2, vocab + 1)
    found: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "sample_index": draw(st.integers(0, 2**32 - 1)),
        "position": np.arange(8),
        "temperature": draw(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 1.7, 50.0, 3e38])),
        "top_k": draw(st.sampled_from([-1, 0, 1, 2, 5, 40, 64, 1000, 2**31 - 1])),
        "top_p": draw(st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])),
        "min_p": draw(st.sampled_from([0.0, 1e-4, 0.1, 0.7, 1.0])),
        "n_top": draw(st.integers(0, 10)),
        "report": draw(st.booleans()),
        "target": draw(st.sampled_from([-1, -1, 0, vocab - 1, vocab])),
    }
    if draw(st.booleans()):
        found["history"] = draw(st.lists(tokens, max_size=40))
        found["prompt_len"] = draw(st.integers(0, len(found["history"])))
        found["repetition_penalty"] = draw(st.sampled_from([1.0, 0.8, 1.3]))
        found["presence_penalty"] = draw(st.sampled_from([0.0, 0.5, -1.0]))
        found["frequency_penalty"] = draw(st.sampled_from([0.0, 0.3, -0.2]))
        found["no_repeat_ngram"] = draw(st.sampled_from([0, 0, 1, 2, 3, 2**31 - 1]))
    if draw(st.booleans()):
        found["banned_ids"] = draw(st.lists(tokens, max_size=5))
    if draw(st.booleans()):
        found["bias_ids"] = draw(st.lists(tokens, max_size=5))
        found["bias_values"] = draw(st.lists(st.sampled_from([-100.0, -1.0, 2.5, 100.0]), min_size=5, max_size=5))
    if draw(st.booleans()):
        found["mask"] = draw(st.lists(st.integers(0, 2**32 - 1), min_size=vocab // 32 + 1, max_size=vocab // 32 + 1))
    return found


def test_the_record_is_the_header_s(native) -> None:
    assert native.library.record_bytes() == SAMPLE_DTYPE.itemsize


def test_scratch_refuses_impossible_vocabularies(native) -> None:
    assert not any(native.library.scratch_create(vocab, 4) for vocab in (-1, 0, 1 << 20, 2**31 - 1))


@SETTINGS
@given(st.data())
def test_results_equal_the_reference(native, records, data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from(SIZES))
    row = row_of(data.draw(ROW_KINDS), vocab, data.draw(st.integers(0, 2**32 - 1)))
    wanted = records(8, **data.draw(options(vocab)))
    got = native.sample(row, wanted, max_top=6)
    for i, record in enumerate(wanted.array):
        expected = sample_row(row, record, 6)
        assert (got.token[i], got.status[i], got.rank[i]) == (expected.token, expected.status, expected.rank)
        assert got.logprob[i] == pytest.approx(expected.logprob, abs=1e-5, rel=1e-6)
        n = len(expected.top_ids)
        assert got.top_ids[i].tolist() == [*expected.top_ids, *[-1] * (6 - n)]
        assert got.top_logprobs[i, :n] == pytest.approx(expected.top_logprobs, abs=1e-5, rel=1e-6)
        assert (got.top_logprobs[i, n:] == -np.inf).all()


def test_large_vocabularies_equal_the_reference(native, records) -> None:
    """Every way of selecting: many blocks, few candidates and many, ties across blocks."""
    for vocab in (152_064, 300_000):
        for kind in ("smooth", "ties", "flat", "peaked"):
            row = row_of(kind, vocab, vocab)
            for filters in FILTERS:
                wanted = records(2, seed=5, position=np.arange(2), n_top=8, report=True, **filters)
                got = native.sample(row, wanted)
                expected = sample_row(row, wanted.array[1], 8)
                assert (got.token[1], got.rank[1]) == (expected.token, expected.rank), (vocab, kind, filters)
                assert got.top_ids[1].tolist() == expected.top_ids.tolist()


# ---- The set that filters leave, and the probabilities in it --------------------------------------------------------


def probabilities(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax in double precision."""
    p = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return p / p.sum()


def drawn(native, records, row: np.ndarray, **wanted: Any) -> np.ndarray:
    """Counts of the tokens of DRAWS draws at successive positions."""
    got = native.sample(row, records(DRAWS, seed=11, position=np.arange(DRAWS), **wanted))
    assert (got.status == STATUS_OK).all()
    return np.bincount(got.token, minlength=len(row))


def assert_distributed(counts: np.ndarray, p: np.ndarray) -> None:
    """Chi-square with a limit five deviations out; the draws are fixed, so the verdict is too."""
    assert not counts[p == 0].any()
    expected = p[p > 0] * counts.sum()
    chi2 = ((counts[p > 0] - expected) ** 2 / expected).sum()
    freedom = max(1, (p > 0).sum() - 1)
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(native, records, temperature: float) -> None:
    row = row_of("smooth", 100, 1)
    p = probabilities(row, temperature)
    assert_distributed(drawn(native, records, row, temperature=temperature), p)


def test_draws_follow_the_softmax_over_samples_and_seeds(native, records) -> None:
    row = row_of("smooth", 30, 2)
    by_sample = native.sample(row, records(DRAWS, sample_index=np.arange(DRAWS), position=7))
    assert_distributed(np.bincount(by_sample.token, minlength=30), probabilities(row))
    by_seed = native.sample(row, records(DRAWS, seed=np.arange(DRAWS, dtype=np.uint64) << np.uint64(32)))
    assert_distributed(np.bincount(by_seed.token, minlength=30), probabilities(row))


def test_successive_draws_are_independent(native, records) -> None:
    row = np.zeros(4, np.float32)
    got = native.sample(row, records(4 * DRAWS, seed=3, position=np.arange(4 * DRAWS)))
    pairs = np.bincount(got.token[::2] * 4 + got.token[1::2], minlength=16)
    assert_distributed(pairs, np.full(16, 1 / 16))


@pytest.mark.parametrize("k", [1, 2, 7, 64, 199])
def test_top_k_keeps_the_k_best(native, records, k: int) -> None:
    row = row_of("smooth", 200, 3)
    p = probabilities(row)
    p[np.argsort(-p, kind="stable")[k:]] = 0
    assert_distributed(drawn(native, records, row, top_k=k), p / p.sum())


@pytest.mark.parametrize("top_p", [1e-6, 0.2, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_with_the_mass(native, records, top_p: float) -> None:
    row = row_of("smooth", 200, 4)
    p = probabilities(row)
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    assert_distributed(drawn(native, records, row, top_p=top_p), p / p.sum())


@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
def test_min_p_is_relative_to_the_best(native, records, min_p: float) -> None:
    row = row_of("smooth", 200, 5)
    p = probabilities(row)
    p[p < min_p * p.max()] = 0
    assert_distributed(drawn(native, records, row, min_p=min_p), p / p.sum())


def test_filters_are_applied_in_order(native, records) -> None:
    """top_p counts the mass that top_k left, but not what min_p will take; temperature comes before all."""
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert np.flatnonzero(drawn(native, records, row, top_p=0.69)).tolist() == [0, 1]
    assert np.flatnonzero(drawn(native, records, row, top_p=0.72)).tolist() == [0, 1, 2]
    assert np.flatnonzero(drawn(native, records, row, top_p=0.72, top_k=3)).tolist() == [0, 1]
    assert np.flatnonzero(drawn(native, records, row, top_p=0.72, min_p=0.4)).tolist() == [0, 1, 2]
    assert np.flatnonzero(drawn(native, records, row, top_p=0.55, top_k=2)).tolist() == [0]
    assert np.flatnonzero(drawn(native, records, row, top_p=0.69, temperature=0.25)).tolist() == [0]


def test_ties_go_to_the_lowest_id(native, records) -> None:
    row = np.zeros(300, np.float32)
    row[[70, 200, 201]] = 1
    assert native.sample(row, records(temperature=0)).token[0] == 70
    assert np.flatnonzero(drawn(native, records, row, top_k=2)).tolist() == [70, 200]
    assert np.flatnonzero(drawn(native, records, row, top_k=5)).tolist() == [0, 1, 70, 200, 201]
    assert np.flatnonzero(drawn(native, records, np.zeros(300, np.float32), top_p=0.0099)).tolist() == [0, 1, 2]
    got = native.sample(row, records(report=True, n_top=5, target=1))
    assert got.top_ids[0, :5].tolist() == [70, 200, 201, 0, 1]
    assert got.rank[0] == 5
    signed = np.array([-0.0, 0.0, -1.0], np.float32)
    assert native.sample(signed, records(temperature=0)).token[0] == 0


# ---- Edits ----------------------------------------------------------------------------------------------------------


def edited_logprobs(native, records, row: np.ndarray, **wanted: Any) -> list[int]:
    """The tokens that are left after the edits, by greedy draws that ban what was found before."""
    found: list[int] = []
    banned = list(wanted.pop("banned_ids", []))
    while True:
        got = native.sample(row, records(temperature=0, banned_ids=[*banned, *found], **wanted))
        if got.status[0] == STATUS_EMPTY:
            return found
        found.append(int(got.token[0]))


def test_mask_and_banned_ids_forbid(native, records) -> None:
    row = -np.arange(70, dtype=np.float32)
    mask = [0xFFFFFFF5, 0x00000001, 0xFFFFFFE0]  # bits beyond the vocabulary count for nothing
    expected = [0, 2, *range(4, 32), 32, 69]
    assert edited_logprobs(native, records, row, mask=mask) == expected
    expected.remove(5)
    assert edited_logprobs(native, records, row, mask=mask, banned_ids=[5, 70, -1, 2**30]) == expected


def test_bias_adds(native, records) -> None:
    row = np.array([0.0, 1.0, 2.0], np.float32)
    lists = {"bias_ids": [0, 99], "bias_values": [2.5, 1000.0]}
    assert edited_logprobs(native, records, row, **lists) == [0, 2, 1]
    banned = native.sample(row, records(temperature=0, banned_ids=[0], **lists))
    assert banned.token[0] == 2


def test_penalties_are_those_of_their_definitions(native, records) -> None:
    """Repetition for prompt and output, once; presence and frequency for the output alone."""
    row = np.array([2.0, -2.0, 2.0, 1.2, -2.5, 1.9], np.float32)
    history, prompt_len = [0, 0, 1, 2, 2, 2], 3
    divided = {"history": history, "prompt_len": prompt_len, "repetition_penalty": 2.0}
    assert edited_logprobs(native, records, row, **divided) == [5, 3, 0, 2, 4, 1]  # 1, -4, 1, 1.2, -2.5, 1.9
    present = {"history": history, "prompt_len": prompt_len, "presence_penalty": 0.5}
    assert edited_logprobs(native, records, row, **present) == [0, 5, 2, 3, 1, 4]  # 2 → 1.5
    frequent = {"history": history, "prompt_len": prompt_len, "frequency_penalty": 0.5}
    assert edited_logprobs(native, records, row, **frequent) == [0, 5, 3, 2, 1, 4]  # 2 → 0.5
    negative = {"history": history, "prompt_len": prompt_len, "frequency_penalty": -0.5}
    assert edited_logprobs(native, records, row, **negative) == [2, 0, 5, 3, 1, 4]


@pytest.mark.parametrize(
    ("history", "n", "forbidden"),
    [
        ([1, 2, 3, 1, 2], 3, {3}),
        ([1, 2, 3, 1, 2], 2, {3}),
        ([1, 2, 3, 1, 2], 4, set()),
        ([1, 2, 3, 1, 2], 1, {1, 2, 3}),
        ([4, 4, 4], 2, {4}),
        ([1, 2, 1, 3, 1], 2, {2, 3}),
        ([1, 2], 3, set()),
        ([1, 2, 99, 1, 2], 3, set()),
    ],
)
def test_no_repeat_ngram(native, records, history: list[int], n: int, forbidden: set[int]) -> None:
    left = edited_logprobs(native, records, np.zeros(6, np.float32), history=history, prompt_len=2, no_repeat_ngram=n)
    assert set(left) == set(range(6)) - forbidden


def test_edits_leave_no_trace(native, records) -> None:
    """The report is that of the unedited row, and a later row does not see an earlier one's history."""
    row = row_of("smooth", 500, 6)
    plain = native.sample(row, records(temperature=0, report=True, n_top=3))
    best = int(plain.token[0])
    got = native.sample(row, records(temperature=0, report=True, n_top=3, banned_ids=[best]))
    assert got.token[0] == plain.top_ids[0, 1]
    assert got.rank[0] == 2
    assert got.logprob[0] == plain.top_logprobs[0, 1]
    assert got.top_ids.tolist() == plain.top_ids.tolist()
    native.sample(row, records(history=[best] * 9, presence_penalty=5.0))
    again = native.sample(row, records(temperature=0, history=[int(plain.top_ids[0, 2])], presence_penalty=1.0))
    assert again.token[0] == best


def test_a_target_is_scored_and_nothing_else(native, records) -> None:
    row = row_of("smooth", 500, 7)
    got = native.sample(row, records(target=123, banned_ids=[123], n_top=2, temperature=5.0))
    assert got.token[0] == 123
    assert got.logprob[0] == pytest.approx(math.log(probabilities(row)[123]), abs=1e-5)
    assert got.rank[0] == 1 + (row > row[123]).sum()
    assert got.top_ids[0, :3].tolist() == [*np.argsort(-row)[:2], -1]


# ---- Numbers that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 63, 64, 299])
@pytest.mark.parametrize("wanted", [{}, {"temperature": 0}, {"target": 3}, {"mask": [0] * 10}])
def test_nan_anywhere_is_a_status(native, records, place: int, wanted: dict[str, Any]) -> None:
    row = row_of("smooth", 300, 8)
    row[place] = np.nan
    got = native.sample(row, records(report=True, n_top=4, **wanted))
    assert (got.status[0], got.token[0]) == (STATUS_NAN, 0)
    assert (got.top_ids == -1).all()


def test_nothing_left_is_a_status(native, records) -> None:
    row = row_of("smooth", 40, 9)
    for wanted in ({"mask": [0, 0]}, {"banned_ids": range(40)}, {"history": range(40), "no_repeat_ngram": 1}):
        for temperature in (0, 1):
            got = native.sample(row, records(temperature=temperature, **wanted))
            assert (got.status[0], got.token[0]) == (STATUS_EMPTY, 0)
    got = native.sample(np.full(40, -np.inf, np.float32), records(report=True))
    assert got.status[0] == STATUS_EMPTY


def test_infinite_logits_share_everything(native, records) -> None:
    row = row_of("smooth", 200, 10)
    row[[20, 150]] = np.inf
    counts = drawn(native, records, row, top_p=0.9, temperature=3.0)
    assert_distributed(counts, np.bincount([20, 150], minlength=200) / 2)
    got = native.sample(row, records(report=True, n_top=3))
    assert got.logprob[0] == pytest.approx(math.log(0.5))
    assert got.top_ids[0, :2].tolist() == [20, 150]
    assert got.top_logprobs[0, 2] == -np.inf
    cancelled = native.sample(row, records(bias_ids=[20], bias_values=[-np.inf]))
    assert cancelled.status[0] == STATUS_NAN


# ---- Purity ---------------------------------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_its_batch(native, records) -> None:
    """The same records in any order and company give the same tokens."""
    row = row_of("smooth", 1000, 12)
    wanted = records(64, seed=9, position=np.arange(64), top_p=0.95, history=[5, 6], presence_penalty=0.5)
    wanted.array["top_k"][::3] = 20
    wanted.array["temperature"][::5] = 0
    together = native.sample(row, wanted).token
    order = np.random.default_rng(0).permutation(64)
    wanted.array = wanted.array[order]
    assert (native.sample(row, wanted).token == together[order]).all()
    for i, record in enumerate(wanted.array.copy()):
        wanted.array = np.array([record], SAMPLE_DTYPE)
        assert native.sample(row, wanted).token[0] == together[order[i]]
