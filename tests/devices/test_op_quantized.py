"""The op "quantize" and linears with a quantized weight: exact integer arithmetic, and one rounding a group.

Where activations are whole multiples of their scale nothing is left to a tolerance: every device gives the bits of the
specification. Elsewhere a device may decide a tie of x / scale either way, which is a step of the last integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import exact
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Bench, Maker, Span, assert_close, bf16, each, examples, rounded

from dashinfer_lite.errors import DeviceError
from dashinfer_lite.weights.grid import Codes

LARGEST = {1: 127, 2: 32512}


@dataclass
class Case:
    """rows x k, in groups of `group` columns (0: one), times a weight of n rows and so many bits."""

    rows: int
    k: int
    n: int
    group: int
    bits: int
    planes: int
    scales: str
    seed: int

    @property
    def width(self) -> int:
        return min(self.group or self.k, self.k)

    @property
    def groups(self) -> int:
        return -(-self.k // self.width)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        rows=draw(st.sampled_from([1, 2, 7, 31, 32, 33, 70])),
        k=draw(st.one_of(st.integers(1, 300), st.sampled_from([64, 128, 1024, 2112]))),
        n=draw(st.integers(1, 100)),
        group=draw(st.sampled_from([0, 0, 16, 20, 32, 64, 128, 256])),
        bits=draw(st.sampled_from([4, 8])),
        planes=draw(st.sampled_from([1, 2])),
        scales=draw(st.sampled_from(["f32", "f16", "bf16"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def make(case: Case) -> tuple[Codes, Array, Array]:
    """A weight, the integers of activations [rows,K] and their scales [rows,G]."""
    rng = np.random.default_rng(case.seed)
    top = (1 << case.bits) - 1
    shape = (case.n, case.groups)
    scales = rounded(rng.random(shape) * 0.1 + 0.01, case.scales)
    weight = Codes(
        rng.integers(0, top + 1, (case.n, case.k)).astype(np.uint8),
        scales,
        rng.integers(0, top + 1, shape).astype(np.int16),
    )
    integers = rng.integers(-LARGEST[case.planes], LARGEST[case.planes] + 1, (case.rows, case.k))
    # The largest of a group is the largest there is, so that its scale is this power of two.
    integers[:, :: case.width] = LARGEST[case.planes]
    return weight, integers, (2.0 ** rng.integers(-6, 3, (case.rows, case.groups))).astype(np.float32)


def product(case: Case, weight: Codes, integers: Array, scales: Array) -> Array:
    """Σ (q - zero) · a of a group in integers, rounded once, times both scales, added group by group."""
    total = np.zeros((case.rows, case.n), np.float32)
    for g in range(case.groups):
        part = slice(g * case.width, (g + 1) * case.width)
        difference = weight.codes[:, part].astype(np.int64) - weight.zeros[:, g : g + 1]
        t = (integers[:, part].astype(np.int64) @ difference.T).astype(np.float32)
        total = exact.fma(t, np.multiply.outer(scales[:, g], weight.scales[:, g]), total)
    return total


@examples(60)
@given(case=cases())
def test_products_are_exact(device: Any, case: Case) -> None:
    weight, integers, scales = make(case)
    x = (integers * np.repeat(scales, case.width, axis=1)[:, : case.k]).astype(np.float32)
    m = Maker(device.info)
    x_slot, y_slot = m.slot(case.k), m.slot(case.n)
    w = m.quantized(case.n, case.k, bits=case.bits, group=case.group, scales=case.scales)
    planes, grid = m.quantize(x_slot, case.k, group=case.group, planes=case.planes)
    m.op("linear", (planes, -1, grid), (y_slot,), (w,))
    wanted = product(case, weight, integers, scales)
    with each(device, m) as benches:
        for bench in benches:
            bench.codes(w, weight)
            bench.put(x_slot, x)
            bench.poison(y_slot, case.rows)
            bench.run(Span(case.rows))
            np.testing.assert_array_equal(bench.get(y_slot, case.rows)[:, : case.n], wanted)
            np.testing.assert_array_equal(bench.get(grid, case.rows)[:, : case.groups], scales)
            sums = bench.get(grid, case.rows)[:, case.groups : 2 * case.groups].view(np.int32)
            edges = np.arange(0, case.k, case.width)
            np.testing.assert_array_equal(sums, np.add.reduceat(integers, edges, axis=1))


@pytest.mark.parametrize("source", ["f32", "bf16"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(("heads", "size", "group"), [(1, 200, 0), (3, 40, 0), (5, 24, 32), (2, 64, 128)])
def test_any_activation(device: Any, source: str, planes: int, heads: int, size: int, group: int) -> None:
    """Heads without their padding, numbers of any kind: each integer within a step, so the product within their sum."""
    rows, n, k = 37, 64, heads * size
    rng = np.random.default_rng(heads)
    x = rounded(rng.standard_normal((rows, heads, size)) * 10.0 ** rng.uniform(-3, 3, (rows, 1, 1)), source)
    case = Case(rows, k, n, group, 8, planes, "f32", 5)
    weight, _, _ = make(case)
    m = Maker(device.info)
    padded = m.pad_head(size)
    x_slot, y_slot = m.slot(heads * padded, source), m.slot(n)
    w = m.quantized(n, k, group=group)
    attrs = {"head": size, "padded_head": padded} if heads > 1 and padded > size else {}
    out = m.quantize(x_slot, k, group=group, planes=planes, **attrs)
    m.op("linear", (out[0], -1, out[1]), (y_slot,), (w,))
    flat = x.reshape(rows, k).astype(np.float64)
    steps = np.zeros((rows, case.groups))
    wanted, slack = np.zeros((rows, n)), np.zeros((rows, n))
    for g in range(case.groups):
        part = slice(g * case.width, (g + 1) * case.width)
        values = (weight.codes[:, part].astype(np.float64) - weight.zeros[:, g : g + 1]) * weight.scales[:, g : g + 1]
        steps[:, g] = np.abs(flat[:, part]).max(axis=1) / LARGEST[planes]
        wanted += flat[:, part] @ values.T
        slack += (
            0.51 * np.multiply.outer(steps[:, g], np.abs(values).sum(axis=1))
            + 1e-6 * np.abs(flat[:, part]) @ np.abs(values).T
        )
    with each(device, m) as benches:
        for bench in benches:
            bench.codes(w, weight)
            bench.put_heads(x_slot, x)
            bench.run(Span(rows))
            assert_close(bench.get(y_slot, rows)[:, :n], wanted, slack)
            assert_close(bench.get(out[1], rows)[:, : case.groups], steps, 1e-6 * steps)


@pytest.mark.parametrize("group", [0, 32])
def test_columns_come_in_the_order_that_is_asked_for(device: Any, group: int) -> None:
    case = Case(5, 96, 32, group, 4, 2, "f16", 1)
    weight, integers, _ = make(case)
    order = np.random.default_rng(0).permutation(case.k).astype(np.int32)
    m = Maker(device.info)
    x_slot, y_slot, order_at = m.slot(case.k), m.slot(case.n), m.vector(case.k)
    w = m.quantized(case.n, case.k, bits=4, group=group, scales="f16")
    planes, grid = m.quantize(x_slot, case.k, group=group, weights=(order_at,))
    m.op("linear", (planes, -1, grid), (y_slot,), (w,))
    x = np.zeros((case.rows, case.k), np.float32)
    x[:, order] = integers
    wanted = product(case, weight, integers, np.ones((case.rows, case.groups), np.float32))
    with each(device, m) as benches:
        for bench in benches:
            bench.codes(w, weight)
            bench.vector(order_at, order.view(np.float32))
            bench.put(x_slot, x)
            bench.run(Span(case.rows))
            np.testing.assert_array_equal(bench.get(y_slot, case.rows)[:, : case.n], wanted)


def test_an_order_that_is_none_is_refused(device: Any) -> None:
    """Columns that do not exist, or come twice; vectors of other operations may hold any bits."""
    m = Maker(device.info)
    x_slot, order_at, norm = m.slot(70), m.vector(70), m.vector(96)
    m.op("rms_norm", (x_slot,), (x_slot,), (norm,), cols=70)
    m.quantize(x_slot, 70, weights=(order_at,))
    good = np.arange(70, dtype=np.int32)[::-1].copy()
    with each(device, m) as benches:
        for bench in benches:
            bench.vector(norm, np.full(96, -1, np.int32).view(np.float32))
            bench.vector(order_at, good.view(np.float32))
            for at, column in ((0, -1), (69, 96), (3, 2**31 - 1), (5, int(good[6])), (69, int(good[0]))):
                broken = good.copy()
                broken[at] = column
                with pytest.raises(DeviceError, match=f"weight {order_at}: .*order"):
                    bench.vector(order_at, broken.view(np.float32))
            bench.vector(order_at, np.roll(good, 1).view(np.float32))


@pytest.mark.parametrize("out", ["f32", "bf16"])
@pytest.mark.parametrize("act", [0, 1, 17])
@pytest.mark.parametrize("adds", [True, False], ids=["bias and residual", "neither"])
def test_the_epilogue_is_that_of_every_linear(device: Any, act: int, out: str, adds: bool) -> None:
    case = Case(33, 128, 64, 64, 8, 2, "bf16", 2)
    weight, integers, scales = make(case)
    x = (integers * np.repeat(scales * 2.0**-15, 64, axis=1)).astype(np.float32)
    m = Maker(device.info)
    columns = case.n // 2 if act > 16 else case.n
    x_slot, r_slot, y_slot = m.slot(case.k), m.slot(columns), m.slot(columns, out)
    w, bias = m.quantized(case.n, case.k, group=64, scales="bf16"), m.vector(case.n)
    planes, grid = m.quantize(x_slot, case.k, group=64)
    m.op("linear", (planes, r_slot if adds else -1, grid), (y_slot,), (w, bias) if adds else (w,), act=act)
    rng = np.random.default_rng(1)
    b, r = (adds * rng.standard_normal(shape).astype(np.float32) for shape in ((case.n,), (case.rows, columns)))
    sums = product(case, weight, integers, scales * np.float32(2.0**-15)) + b

    def silu(v: Array) -> Array:
        return v / (1 + np.exp(-v.astype(np.float64)))

    pairs = sums.reshape(case.rows, -1, 2, 16)
    y = silu(pairs[:, :, 0]) * pairs[:, :, 1] if act > 16 else silu(sums) if act else sums
    wanted = y.reshape(case.rows, columns) + r
    with each(device, m) as benches:
        for bench in benches:
            bench.codes(w, weight)
            bench.vector(bias, b)
            bench.put(x_slot, x)
            bench.put(r_slot, r)
            bench.run(Span(case.rows))
            got = bench.get(y_slot, case.rows)[:, :columns]
            bound = 2.0**-8 if out == "bf16" else 4e-6
            assert_close(got, wanted, bound * np.abs(wanted) + 1e-5)
            np.testing.assert_array_equal(got, rounded(got, out))


def test_zeros_and_what_is_not_finite_stay_in_their_rows(device: Any) -> None:
    case = Case(6, 64, 32, 32, 8, 2, "f32", 3)
    weight, integers, _ = make(case)
    x = integers.astype(np.float32)
    x[1] = 0
    x[2, 40], x[3, 1], x[4, 2] = np.nan, np.inf, -np.inf
    x[5, :32] = 1e-42
    m = Maker(device.info)
    x_slot, y_slot = m.slot(case.k), m.slot(case.n)
    w = m.quantized(case.n, case.k, group=32)
    planes, grid = m.quantize(x_slot, case.k, group=32)
    m.op("linear", (planes, -1, grid), (y_slot,), (w,))
    kept = np.where(np.abs(x) < 1e-30, 0, x)
    wanted = product(case, weight, np.nan_to_num(kept, posinf=0, neginf=0), np.ones((case.rows, 2), np.float32))
    with each(device, m) as benches:
        for bench in benches:
            bench.codes(w, weight)
            bench.put(x_slot, x)
            bench.run(Span(case.rows))
            got = bench.get(y_slot, case.rows)[:, : case.n]
            np.testing.assert_array_equal(got[[0, 1, 5]], wanted[[0, 1, 5]])
            assert np.isnan(got[2:5]).all()


def test_embedding_rows_come_from_the_packed_head(device: Any) -> None:
    """Every row, exactly: (code - zero) · scale, and a factor."""
    for bits, group, scales in ((8, 0, "f32"), (4, 32, "bf16"), (8, 20, "f16")):
        case = Case(64, 72, 64, group, bits, 2, scales, bits)
        weight, _, _ = make(case)
        m = Maker(device.info, vocab=64, hidden=72)
        y_slot = m.slot(72)
        w = m.quantized(64, 72, bits=bits, group=group, scales=scales)
        m.op("embed", (), (y_slot,), (w,), scale=0.5)
        by_column = [np.repeat(part, case.width, axis=1)[:, :72] for part in (weight.scales, weight.zeros)]
        wanted = (weight.codes - by_column[1]).astype(np.float32) * by_column[0] * np.float32(0.5)
        with each(device, m) as benches:
            for bench in benches:
                bench.codes(w, weight)
                bench.poison(y_slot, 64)
                bench.run(Span(64, tokens=range(64)))
                got = bench.get(y_slot, 64)
                np.testing.assert_array_equal(got[:, :72], wanted)
                assert not got[:, 72:].any()


def test_rows_that_no_grid_can_hold(device: Any) -> None:
    m = Maker(device.info)
    x_slot, y_slot = m.slot(64), m.slot(32)
    w, plain = m.quantized(32, 64), m.matrix(32, 64)
    planes, grid = m.quantize(x_slot, 64)
    m.op("linear", (planes, -1, grid), (y_slot,), (w,))
    with each(device, m) as benches:
        for bench in benches:
            values = np.ones((32, 64), np.float32)
            bench.matrix(w, values, "f32")
            values[3, 5] = np.inf
            with pytest.raises(DeviceError, match="finite"):
                bench.matrix(w, values, "f32")
            weight, _, _ = make(Case(1, 64, 32, 0, 8, 2, "f32", 0))
            with pytest.raises(DeviceError, match="quantized"):
                bench.codes(plain, weight)
            check_shapes(bench, w, weight)


def check_shapes(bench: Bench, w: int, weight: Codes) -> None:
    """Rows of another length are refused, on whichever device."""
    for wrong in (
        weight._replace(codes=weight.codes[:, :-1].copy()),
        weight._replace(scales=np.ones((32, 2), np.float32)),
    ):
        with pytest.raises((DeviceError, ValueError)):
            bench.codes(w, wrong)


def test_activations_of_16_bit_keep_more_than_bf16() -> None:
    """The reason for two planes: their error is far below that of rounding to bf16."""
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    scale = np.abs(x).max() / LARGEST[2]
    error = np.rint(x / scale) * scale - x
    assert np.sqrt(np.mean(error**2)) < np.sqrt(np.mean((bf16(x) - x) ** 2)) / 20
