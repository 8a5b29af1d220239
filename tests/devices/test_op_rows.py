"""Ops that map rows to rows: norms, elementwise maps, casts, the embedding, the gathering of logit rows.

Tolerances come from the number of roundings, u = 2⁻²⁴ each; a 16-bit output adds half a unit of its last place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Maker, Span, assert_close, each, examples, fill_step, rounded

from dashinfer_lite.devices.step import HIDDEN

UNIT = 2.0**-24
HALF_BF16 = 2.0**-8
ROWS = st.integers(1, 70)
COLS = st.integers(1, 200)
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from(["f32", "bf16"])


def half_unit(dtype: str, y: Array) -> Array:
    """What rounding y to its slot's type may change."""
    return np.abs(y) * (HALF_BF16 if dtype == "bf16" else UNIT)


# ---- norms -----------------------------------------------------------------------------------------------------------


@examples(40)
@given(rows=ROWS, cols=COLS, out=DTYPES, eps=st.sampled_from([1e-6, 1e-5, 0.1]), seed=SEEDS)
def test_rms_norm(device: Any, rows: int, cols: int, out: str, eps: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rounded(3 * rng.standard_normal((rows, cols)), "f32"), rounded(rng.standard_normal(cols), "f32")
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + np.float32(eps)) * w
    tolerance = (cols / 16 + 12) * UNIT * np.abs(expected) + half_unit(out, expected)
    maker = Maker(device.info)
    x_slot, y_slot, weight = maker.slot(cols), maker.slot(cols, out), maker.vector(cols)
    maker.op("rms_norm", (x_slot,), (y_slot,), (weight,), cols=cols, eps=eps)
    with each(device, maker) as benches:
        for bench in benches:
            bench.vector(weight, w)
            bench.put(x_slot, x)
            bench.poison(y_slot, rows)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            assert_close(got[:, :cols], expected, tolerance)
            assert not got[:, cols:].any()


@examples(40)
@given(rows=ROWS, cols=COLS, out=DTYPES, bias=st.booleans(), mean=st.sampled_from([0.0, 5.0]), seed=SEEDS)
def test_layer_norm(device: Any, rows: int, cols: int, out: str, bias: bool, mean: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rounded(mean + rng.standard_normal((rows, cols)), "f32")
    w, b = rounded(rng.standard_normal(cols), "f32"), rounded(rng.standard_normal(cols) * bias, "f32")
    x64 = x.astype(np.float64)
    d = x64 - x64.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((d**2).mean(-1, keepdims=True) + np.float32(1e-5))
    expected = d * inverse * w + b
    roundings = cols / 16 + 12
    lost = roundings * UNIT * np.abs(x64).max(-1, keepdims=True)  # in the mean, and so in every d
    relative = roundings * UNIT + 2 * lost * inverse
    tolerance = (np.abs(d) * relative + lost) * inverse * np.abs(w) + UNIT * np.abs(b) + half_unit(out, expected)
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(cols), maker.slot(cols, out)
    weights = [maker.vector(cols)] + ([maker.vector(cols)] if bias else [])
    maker.op("layer_norm", (x_slot,), (y_slot,), weights, cols=cols, eps=1e-5)
    with each(device, maker) as benches:
        for bench in benches:
            bench.vector(weights[0], w)
            if bias:
                bench.vector(weights[1], b)
            bench.put(x_slot, x)
            bench.poison(y_slot, rows)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            assert_close(got[:, :cols], expected, tolerance)
            assert not got[:, cols:].any()


# ---- elementwise -----------------------------------------------------------------------------------------------------


@examples(40)
@given(
    op=st.sampled_from(["mul", "add"]),
    rows=ROWS,
    cols=COLS,
    types=st.tuples(DTYPES, DTYPES, DTYPES),
    home=st.integers(0, 2),
    seed=SEEDS,
)
def test_mul_and_add(
    device: Any, op: str, rows: int, cols: int, types: tuple[str, str, str], home: int, seed: int
) -> None:
    """In types of any mixture, also in the place of an input (`home` 0 or 1)."""
    rng = np.random.default_rng(seed)
    a, b = (rounded(rng.standard_normal((rows, cols)), dtype) for dtype in types[:2])
    maker = Maker(device.info)
    slots = [maker.slot(cols, types[0]), maker.slot(cols, types[1])]
    y_slot = slots[home] if home < 2 else maker.slot(cols, types[2])
    out = types[home]
    maker.op(op, slots, (y_slot,))
    exact = rounded(a * b if op == "mul" else a + b, out)  # one rounding to fp32, one to the output's type
    with each(device, maker) as benches:
        for bench in benches:
            if home == 2:
                bench.poison(y_slot, rows)
            bench.put(slots[0], a)
            bench.put(slots[1], b)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            np.testing.assert_array_equal(got[:, :cols], exact)
            assert not got[:, cols:].any()


@examples(40)
@given(
    op=st.sampled_from(["scale", "cast"]),
    rows=ROWS,
    cols=COLS,
    types=st.tuples(DTYPES, DTYPES),
    factor=st.floats(-8, 8, width=32),
    seed=SEEDS,
)
def test_scale_and_cast(
    device: Any, op: str, rows: int, cols: int, types: tuple[str, str], factor: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rounded(rng.standard_normal((rows, cols)), types[0])
    factor = factor if abs(factor) > 1e-3 else 0.0
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(cols, types[0]), maker.slot(cols, types[1])
    attrs = {"factor": factor} if op == "scale" else {}
    maker.op(op, (x_slot,), (y_slot,), **attrs)
    exact = rounded(x * np.float32(factor) if op == "scale" else x, types[1])
    with each(device, maker) as benches:
        for bench in benches:
            bench.poison(y_slot, rows)
            bench.put(x_slot, x)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            np.testing.assert_array_equal(got[:, :cols], exact)
            assert not got[:, cols:].any()


@examples(40)
@given(
    act=st.integers(0, 3),
    rows=ROWS,
    cols=COLS,
    types=st.tuples(DTYPES, DTYPES),
    spread=st.sampled_from([0.1, 2.0, 60.0]),
    seed=SEEDS,
)
def test_act(device: Any, act: int, rows: int, cols: int, types: tuple[str, str], spread: float, seed: int) -> None:
    x = rounded(spread * np.random.default_rng(seed).standard_normal((rows, cols)), types[0])
    expected = activation(x.astype(np.float64), act)
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(cols, types[0]), maker.slot(cols, types[1])
    maker.op("act", (x_slot,), (y_slot,), act=act)
    with each(device, maker) as benches:
        for bench in benches:
            bench.put(x_slot, x)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            assert_close(got[:, :cols], expected, 1e-6 * np.abs(x) + half_unit(types[1], expected))
            assert not got[:, cols:].any()


def activation(x: Array, code: int) -> Array:
    """none, silu, gelu by tanh, gelu by erf."""
    with np.errstate(over="ignore"):
        silu = x / (1 + np.exp(-x))
    gelu_tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    gelu_erf = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return [x, silu, gelu_tanh, gelu_erf][code]


@examples(25)
@given(
    rows=ROWS, cols=COLS, cap=st.sampled_from([1.0, 30.0, 50.0]), spread=st.sampled_from([0.01, 1.0, 100.0]), seed=SEEDS
)
def test_softcap(device: Any, rows: int, cols: int, cap: float, spread: float, seed: int) -> None:
    x = rounded(spread * np.random.default_rng(seed).standard_normal((rows, cols)), "f32")
    expected = cap * np.tanh(x.astype(np.float64) / cap)
    maker = Maker(device.info)
    x_slot = maker.slot(cols)
    maker.op("softcap", (x_slot,), (x_slot,), cap=cap)
    with each(device, maker) as benches:
        for bench in benches:
            bench.put(x_slot, x)
            bench.run(Span(rows))
            got = bench.get(x_slot, rows)
            assert_close(got[:, :cols], expected, 6 * UNIT * cap)  # 1 - 2 / (1 + exp): what is left of the 1
            assert not got[:, cols:].any()


SPECIAL = {0.0: 0.0, 3e38: 3e38, -1e6: 0.0, 88.0: 88.0, -88.0: 0.0, 200.0: 200.0, -200.0: 0.0, np.inf: np.inf}


@pytest.mark.parametrize("act", [1, 2, 3])
def test_activations_of_extreme_values(device: Any, act: int) -> None:
    """Far out an activation is its argument or zero; NaN stays NaN."""
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(32), maker.slot(32)
    maker.op("act", (x_slot,), (y_slot,), act=act)
    with each(device, maker) as benches:
        bench = benches[0]
        bench.put(x_slot, np.array([[*SPECIAL, np.nan]], np.float32))
        bench.run(Span(1))
        got = bench.get(y_slot, 1)[0]
    limits = np.array(list(SPECIAL.values()), np.float32)
    finite = np.isfinite(limits)
    assert_close(got[: len(limits)][finite], limits[finite], 1e-30)
    assert (got[: len(limits)][~finite] == np.inf).all()
    assert np.isnan(got[len(limits)])


ROUNDINGS = {
    0x3F800000: 0x3F80,
    0x3F808000: 0x3F80,
    0x3F818000: 0x3F82,
    0x3F808001: 0x3F81,
    0x3F817FFF: 0x3F81,
    0x7F7FFFFF: 0x7F80,
    0x7F800000: 0x7F80,
    0xFF800000: 0xFF80,
    0x00800000: 0x0080,
    0x80800001: 0x8080,
    0x7F7F7FFF: 0x7F7F,
    0xFF7F8000: 0xFF80,
    0x00000000: 0x0000,
    0x80000000: 0x8000,
}
NANS = [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F810000]


def test_rounding_to_bf16(device: Any) -> None:
    """To nearest even, over the whole range; NaN stays NaN also where a carry would make it an infinity or a zero."""
    bits = np.zeros(32, np.uint32)
    bits[: len(ROUNDINGS) + len(NANS)] = [*ROUNDINGS, *NANS]
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(32), maker.slot(32, "bf16")
    maker.op("cast", (x_slot,), (y_slot,))
    with each(device, maker) as benches:
        bench = benches[0]
        bench.put(x_slot, bits.view(np.float32)[None])
        bench.run(Span(1))
        got = bench.get(y_slot, 1)[0, : len(bits)]
    np.testing.assert_array_equal(got.view(np.uint32)[: len(ROUNDINGS)] >> 16, list(ROUNDINGS.values()))
    assert np.isnan(got[len(ROUNDINGS) : len(ROUNDINGS) + len(NANS)]).all()


# ---- the ends of a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@examples(25)
@given(
    rows=ROWS, cols=COLS, vocab=st.integers(1, 80), tied=st.booleans(), scale=st.sampled_from([1.0, 5.5]), seed=SEEDS
)
def test_embed(device: Any, dtype: str, rows: int, cols: int, vocab: int, tied: bool, scale: float, seed: int) -> None:
    """Rows of a table, or of the packed head that is tied to it; the scale rounds once."""
    rng = np.random.default_rng(seed)
    table = rounded(rng.standard_normal((vocab, cols)), dtype)
    tokens = rng.integers(0, vocab, rows)
    maker = Maker(device.info, vocab=vocab, hidden=cols)
    y_slot = maker.slot(cols)
    weight = maker.matrix(vocab, cols, dtype, kind="linear" if tied else "table")
    maker.op("embed", (), (y_slot,), (weight,), scale=scale)
    with each(device, maker) as benches:
        for bench in benches:
            bench.matrix(weight, table)
            bench.poison(y_slot, rows)
            bench.run(Span(rows, tokens=tokens))
            got = bench.get(y_slot, rows)
            np.testing.assert_array_equal(got[:, :cols], table[tokens] * np.float32(scale))
            assert not got[:, cols:].any()


@examples(25)
@given(rows=ROWS, wanted=st.lists(st.integers(0, 69), min_size=1, max_size=70), cols=COLS, dtype=DTYPES, seed=SEEDS)
def test_gather_rows(device: Any, rows: int, wanted: list[int], cols: int, dtype: str, seed: int) -> None:
    """The tail's slot holds the last tile of the rows that were asked for, in any order and any number of times."""
    x = rounded(np.random.default_rng(seed).standard_normal((rows, cols)), dtype)
    wanted = [row % rows for row in wanted]
    tile = 16
    maker = Maker(device.info, tail_rows=tile)
    x_slot, h_slot, y_slot = maker.slot(cols, dtype), maker.slot(cols, dtype), maker.slot(cols, dtype, "R")
    maker.op("cast", (x_slot,), (h_slot,))
    maker.tail_op("gather_rows", (h_slot,), (y_slot,))
    with each(device, maker) as benches:
        for bench in benches:
            bench.put(x_slot, x)
            bench.run(Span(rows, logits=wanted))
            last = wanted[(len(wanted) - 1) // tile * tile :]
            got = bench.get(y_slot, len(last))
            np.testing.assert_array_equal(got[:, :cols], x[last])
            assert not got[:, cols:].any()


@examples(25)
@given(rows=ROWS, cols=COLS, flagged=st.sets(st.integers(0, 69)), seed=SEEDS)
def test_hidden(device: Any, rows: int, cols: int, flagged: set[int], seed: int) -> None:
    """Hidden states of all rows come out; tokens do unless a whole tile asks for none."""
    x = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    maker = Maker(device.info, tail_rows=8, vocab=cols, hidden=cols)
    x_slot, y_slot = maker.slot(cols), maker.slot(cols, rows="R")
    maker.op("cast", (x_slot,), (x_slot,))
    maker.tail_op("gather_rows", (x_slot,), (y_slot,))
    maker.tail_op("hidden", (y_slot,), H=cols)
    maker.tail_op("sample", (y_slot,), V=cols)
    wanted = list(range(rows))[::-1]
    tiles = [range(first, min(first + 8, rows)) for first in range(0, rows, 8)]
    drawn = [row for tile in tiles if not flagged.issuperset(tile) for row in tile]
    with each(device, maker) as benches:
        for bench in benches:
            step = fill_step(bench.step, [Span(rows, logits=wanted)])
            step.sample["flags"][sorted(row for row in flagged if row < rows)] |= HIDDEN
            step.out_hidden = np.full((rows, cols), np.nan, np.float32)
            bench.put(x_slot, x)
            bench.submit(step)
            np.testing.assert_array_equal(step.out_hidden, x[wanted])
            np.testing.assert_array_equal(step.out_token[drawn], x[wanted].argmax(1)[drawn])
            step.out_hidden = None
            bench.submit(step)
