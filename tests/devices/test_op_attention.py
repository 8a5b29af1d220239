"""The ops "kv_write" and "attention" against float64: heads, groups, masks, windows, caps, biases, pages, chunks.

The bound adds up what rounding may do: to the scores (as in a product of D columns, and again where they are capped or
biased), to the probabilities (2⁻⁸ of each where the cache is not fp32, exp to 2 ulp) and to the sums: relative to
Σ p·|v|. Of a quantized cache the oracle takes the numbers that the codes stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import exact
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Bench, Maker, Span, assert_close, each, examples, rounded

from dashinfer_lite.graph.program import KvSpec

UNIT = 2.0**-24
CHUNK = 100
CACHES = ["f32", "bf16", "u8", "u4"]
HEADS = [(1, 1), (4, 2), (5, 1), (3, 3), (33, 1), (14, 2)]


@dataclass
class Case:
    """Sequences as (tokens before, new tokens), and how they attend."""

    sequences: list[tuple[int, int]]
    heads: tuple[int, int] = (4, 2)
    size: int = 32
    cache: str = "f32"
    out: str = "f32"
    block_tokens: int = 32
    window: int = 0
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    bidirectional: int = 0
    spread: float = 1.0
    seed: int = 0
    tables: list[list[int]] = field(default_factory=list)


SEQUENCES = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=3)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        draw(SEQUENCES),
        heads=draw(st.sampled_from(HEADS)),
        size=2 * draw(st.one_of(st.integers(4, 128), st.sampled_from([32, 64]))),
        cache=draw(st.sampled_from(CACHES)),
        out=draw(st.sampled_from(["f32", "bf16"])),
        block_tokens=draw(st.sampled_from([32, 64, 96])),
        window=draw(st.sampled_from([0, 0, 1, 2, 17, 40, 64])),
        softcap=draw(st.sampled_from([0.0, 0.0, 20.0])),
        alibi=draw(st.booleans()),
        sinks=draw(st.booleans()),
        bidirectional=draw(st.sampled_from([0, 0, 1, 9, 33])),
        spread=draw(st.sampled_from([0.3, 1.0, 4.0])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@examples(30)
@given(case=cases())
def test_attention(device: Any, case: Case) -> None:
    check(device, case)


@pytest.mark.in_turn("cache")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("window", [0, 1, 301, 1100])
def test_long_contexts(device: Any, cache: str, window: int) -> None:
    """Several softmax steps of 256 positions and splits of 1024, decoded and prefilled."""
    biased = window % 2 == 1
    sequences = [(1300, 1), (1020, 9), (255, 2)] if window else [(2050, 1)]
    check(
        device,
        Case(sequences, (2, 1), 16, cache, window=window, block_tokens=64, alibi=biased, sinks=biased, seed=window),
    )


@pytest.mark.parametrize("cache", ["u8", "u4"])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(device: Any, cache: str, which: str, value: float) -> None:
    """Codes know no NaN: the scale is one, and rows that see it are not finite. Other heads and sequences stay."""
    case = Case([(0, 30), (0, 9)], (2, 2), 40, cache, tables=[[1], [0]])
    rng = np.random.default_rng(3)
    q, k, v = ([rounded(rng.standard_normal((n, 2, 40)), "f32") for n in (30, 9)] for _ in range(3))

    def rows(bench: Bench) -> list[Array]:
        """Attention of both sequences' first tokens, of the token in question, and of those after it."""
        results = []
        for first, count, more in ((0, 20, [(1, 0, 9)]), (20, 1, []), (21, 9, [])):
            step(bench, case, [(0, first, count), *more], q, k, v)
            results.append(bench.get(3, count + (9 if more else 0)).reshape(-1, 2, bench.maker.pad_head(40))[..., :40])
        return results

    with each(device, make(device, case, 2)) as benches:
        clean = [rows(bench) for bench in benches]
        {"k": k, "v": v}[which][0][20, 1, 7] = value
        for bench, expected in zip(benches, clean, strict=True):
            got = rows(bench)
            np.testing.assert_array_equal(got[0], expected[0])
            for y, before in zip(got[1:], expected[1:], strict=True):
                np.testing.assert_array_equal(y[:, 0], before[:, 0])
                assert np.isfinite(before).all() and not np.isfinite(y[:, 1]).any()


@pytest.mark.parametrize("cache", ["u8", "u4"])
@pytest.mark.parametrize("sign", [1, -1])
def test_heads_of_one_sign_keep_their_numbers(device: Any, cache: str, sign: int) -> None:
    """Far from zero a range of the values alone needs a zero point that is no code. A lone token's answer is its v."""
    rng = np.random.default_rng(5)
    size, count, largest = 40, 8, exact.LARGEST_CODE[cache]
    near = [rounded(sign * (50 + rng.standard_normal((n, 2, size))), "f32") for n in (1,) * count]
    case = Case([(0, 1)] * count, (2, 2), size, cache, tables=[[b] for b in range(count)])
    step_size = np.abs(np.concatenate(near)).max(-1, keepdims=True) / largest
    with each(device, make(device, case, count), max_blocks=1) as benches:
        for bench in benches:
            step(bench, case, [(b, 0, 1) for b in range(count)], near, near, near)
            got = bench.get_heads(3, count, 2, size)
            assert_close(got, np.concatenate(near), 0.51 * step_size + 2.0**-8 * np.abs(got))


def check(device: Any, case: Case) -> None:
    """Fills the caches in chunks, runs the new tokens of all sequences in one step and compares."""
    rng = np.random.default_rng(case.seed)
    hq, hkv = case.heads
    totals = [before + new for before, new in case.sequences]
    needed = [-(-total // case.block_tokens) for total in totals]
    order = rng.permutation(sum(needed) + 2).tolist()
    case.tables = [order[sum(needed[:b]) : sum(needed[: b + 1])] for b in range(len(needed))]
    q, k, v = (
        [rounded(case.spread * rng.standard_normal((n, h, case.size)), "f32") for n in totals] for h in (hq, hkv, hkv)
    )
    slopes = rounded(2.0 ** -rng.uniform(1, 8, hq), "f32")
    sinks = rounded(rng.standard_normal(hq), "f32")
    with each(device, make(device, case, sum(needed) + 2), max_blocks=max(needed)) as benches:
        for bench in benches:
            for weight, values in zip(
                (w for w in bench.program.body[1].weights if w >= 0), chosen(case, slopes, sinks), strict=True
            ):
                bench.vector(weight, values)
            for b, (before, _) in enumerate(case.sequences):
                for start in range(0, before, CHUNK):
                    step(bench, case, [(b, start, min(CHUNK, before - start))], q, k, v)
            step(bench, case, [(b, before, new) for b, (before, new) in enumerate(case.sequences)], q, k, v)
            got = bench.get_heads(3, sum(new for _, new in case.sequences), hq, case.size)
            want = [oracle(case, b, bench, q[b], k[b], v[b], slopes, sinks) for b in range(len(totals))]
            assert_close(got, *(np.concatenate([pair[i] for pair in want]) for i in range(2)))


def make(device: Any, case: Case, blocks: int) -> Maker:
    """Slots q, k, v, y; kv_write, then attention."""
    hq, hkv = case.heads
    kv = KvSpec(2, hkv, case.size, case.cache, case.block_tokens, blocks)  # type: ignore[arg-type]
    maker = Maker(device.info, tokens=128, kv=kv)
    slots = [maker.slot(heads * maker.pad_head(case.size)) for heads in (hq, hkv, hkv)]
    y_slot = maker.slot(hq * maker.pad_head(case.size), case.out)
    weights = [maker.vector(hq) if case.alibi else -1, maker.vector(hq) if case.sinks else -1]
    maker.op("kv_write", slots[1:], layer=1, Hkv=hkv, D=case.size)
    attrs = {"layer": 1, "Hq": hq, "Hkv": hkv, "D": case.size, "window": case.window, "softcap": case.softcap}
    maker.op("attention", slots[:1], (y_slot,), weights, scale=case.size**-0.5, **attrs)
    return maker


def chosen(case: Case, slopes: Array, sinks: Array) -> list[Array]:
    """The vectors that the case has."""
    return [slopes] * case.alibi + [sinks] * case.sinks


def step(
    bench: Bench, case: Case, work: list[tuple[int, int, int]], q: list[Array], k: list[Array], v: list[Array]
) -> None:
    """Runs tokens [start, start + count) of sequences b; a sequence that begins gets clean blocks."""
    for slot, values in enumerate((q, k, v)):
        bench.put_heads(slot, np.concatenate([values[b][start : start + count] for b, start, count in work]))
    bench.poison(3, sum(count for _, _, count in work))
    spans = [
        Span(count, start, blocks=case.tables[b], bidirectional=min(case.bidirectional, start + count))
        for b, start, count in work
    ]
    bench.run(*spans, clear=[block for b, start, _ in work if start == 0 for block in case.tables[b]])


def numbers(x: Array, cache: str) -> Array:
    """What a cache holds in place of x[T,Hkv,D], in float64."""
    values, scales = exact.kept(x, cache)
    return values.astype(np.float64) * scales[..., None].astype(np.float64)


def oracle(
    case: Case, b: int, bench: Bench, q: Array, k: Array, v: Array, slopes: Array, sinks: Array
) -> tuple[Array, Array]:
    """Attention of a sequence's new tokens in float64, and the bound of the error."""
    before, new = case.sequences[b]
    # The CPU's scores are logarithms to base 2, so that q is rounded after another multiplication.
    unit = exact.LOG2E if bench.device.info.name == "cpu" else np.float32(1)
    q = rounded(q[before:] * (np.float32(case.size**-0.5) * unit), "f32" if case.cache == "f32" else "bf16")
    q = q.transpose(1, 0, 2) / np.float64(unit)
    group = case.heads[0] // case.heads[1]
    k, v = (np.repeat(numbers(x, case.cache).transpose(1, 0, 2), group, axis=0) for x in (k, v))
    scores = q @ k.transpose(0, 2, 1)
    sizes = np.abs(q) @ np.abs(k).transpose(0, 2, 1)
    error = (case.size / 32 + 20) * UNIT * sizes
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
        error = error + 6 * UNIT * case.softcap
    rows, columns = np.arange(before, before + new)[:, None], np.arange(before + new)[None]
    if case.alibi:
        bias = slopes[:, None, None].astype(np.float64) * columns
        scores = scores + bias
        error = error + 2 * UNIT * (np.abs(bias) + np.abs(scores))
    seen = (columns <= rows) | ((columns < case.bidirectional) & (rows < case.bidirectional))
    if case.window:
        seen = seen & (columns > rows - case.window)
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    if case.sinks:
        top = np.maximum(top, sinks[:, None, None])
    p = np.exp(scores - top)
    total = p.sum(-1, keepdims=True) + (np.exp(sinks[:, None, None] - top) if case.sinks else 0)
    y = ((p / total) @ v).transpose(1, 0, 2)
    weight = ((p / total) @ np.abs(v)).transpose(1, 0, 2)
    spread = (top - np.where(seen, scores, top)).max(-1, keepdims=True).clip(0, 90)
    lost = np.where(seen, error, 0).max(-1, keepdims=True)
    relative = (2 * lost + UNIT * spread).transpose(1, 0, 2) + 60 * UNIT + (0 if case.cache == "f32" else 2.0**-8)
    return y, weight * relative + np.abs(y) * (2.0**-8 if case.out == "bf16" else 0) + 1e-30
