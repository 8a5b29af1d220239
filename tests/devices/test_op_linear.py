"""The op "linear" against float64: shapes, types, paddings, bias, activation, gate, residual, views.

An output is a sum of products whose roundings the specification counts: 17 additions on the longest way through a cell,
one a cell of a segment, one a segment. So |error| <= roundings · 2⁻²⁴ · Σ|x·w|, and no tolerance is guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Maker, Span, assert_close, each, examples, interleaved, round_up, rounded

UNIT = 2.0**-24
ACT_ERROR = 1e-6  # of the activations, relative to their input: exp to 2 ulp, erf to 1.5e-7, three more roundings
STEEPEST = 1.13  # slope of silu and gelu
ACTIVATIONS = {0: "none", 1: "silu", 2: "gelu_tanh", 3: "gelu_erf"}


@dataclass
class Case:
    """rows x (groups of `group` columns) x n, and what happens to the sums."""

    rows: int
    groups: int
    group: int
    n: int
    act: int
    gated: bool
    bias: bool
    residual: str
    out: str
    seed: int

    @property
    def k(self) -> int:
        return self.groups * self.group


@st.composite
def cases(draw: st.DrawFn, k: st.SearchStrategy[int] | None = None) -> Case:
    groups = 1 if k is not None else draw(st.sampled_from([1, 1, 1, 2, 3]))
    gated = draw(st.booleans())
    return Case(
        rows=draw(st.integers(1, 70)),
        groups=groups,
        group=draw(
            k if k is not None else st.integers(1, 200) if groups == 1 else st.integers(4, 64).map(lambda d: 2 * d)
        ),
        n=draw(st.integers(1, 100)),
        act=draw(st.sampled_from([1, 2, 3] if gated else [0, 0, 1, 2, 3])),
        gated=gated,
        bias=draw(st.booleans()),
        residual=draw(st.sampled_from(["", "apart", "in place"])),
        out=draw(st.sampled_from(["f32", "bf16"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@examples(12)
@given(case=cases())
def test_linear(device: Any, dtype: str, case: Case) -> None:
    check(device, dtype, case)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@examples(3)
@given(case=cases(k=st.integers(2000, 6200)))
def test_linear_over_several_segments(device: Any, dtype: str, case: Case) -> None:
    case.rows = min(case.rows, 40)
    check(device, dtype, case)


def check(device: Any, dtype: str, case: Case) -> None:
    """Runs the case and holds it to its bound."""
    rng = np.random.default_rng(case.seed)
    x = rounded(rng.standard_normal((case.rows, case.k)), "bf16" if dtype == "bf16" else "f32")
    w = [rounded(rng.standard_normal((case.n, case.k)), dtype) for _ in range(1 + case.gated)]
    b = [rounded(rng.standard_normal(case.n) * case.bias, "f32") for _ in w]
    residual = rounded(rng.standard_normal((case.rows, case.n)) * bool(case.residual), "f32")
    expected, bound = oracle(case, x, w, b, residual)
    if case.out == "bf16" and case.residual != "in place":
        bound += 2.0**-8 * np.abs(expected)

    maker = Maker(device.info)
    padded_k = maker.pad_head(case.group) * case.groups if case.groups > 1 else maker.pad(case.k)
    x_slot = maker.slot(padded_k, "bf16" if dtype == "bf16" else "f32")
    y_cols = round_up(case.n, math.lcm(device.info.col_align, 16)) if case.gated else maker.pad(case.n)
    y_slot = maker.slot(y_cols, "f32" if case.residual == "in place" else case.out)
    inputs = [x_slot]
    if case.residual:
        inputs.append(y_slot if case.residual == "in place" else maker.slot(y_cols))
    weights = [maker.matrix(y_cols * (1 + case.gated), case.k, dtype, group=case.group if case.groups > 1 else 0)]
    if case.bias:
        weights.append(maker.vector(y_cols * (1 + case.gated)))
    maker.op("linear", inputs, (y_slot,), weights, act=case.act + 16 * case.gated)

    with each(device, maker) as benches:
        for bench in benches:
            bench.matrix(weights[0], interleaved(w, y_cols) if case.gated else w[0])
            if case.bias:
                bench.vector(weights[1], interleaved([v[:, None] for v in b], y_cols)[:, 0] if case.gated else b[0])
            x_padded = x if case.groups == 1 else bench.padded_heads(x.reshape(case.rows, case.groups, case.group))
            bench.put(x_slot, x_padded)
            bench.poison(y_slot, case.rows)
            if case.residual:
                bench.put(inputs[1], residual)
            bench.run(Span(case.rows))
            got = bench.get(y_slot, case.rows)
            assert_close(got[:, : case.n], expected, bound)
            assert not got[:, case.n :].any(), "padded columns are zero"


def oracle(case: Case, x: Array, w: list[Array], b: list[Array], residual: Array) -> tuple[Array, Array]:
    """The float64 result and the bound of its error."""
    cells = case.groups * -(-case.group // 32)
    roundings = 16 + 2 + min(cells, 64) + math.ceil(cells / 64) + 3
    sums = [x.astype(np.float64) @ v.T.astype(np.float64) + c for v, c in zip(w, b, strict=True)]
    sizes = [
        np.abs(x).astype(np.float64) @ np.abs(v).T.astype(np.float64) + np.abs(c) for v, c in zip(w, b, strict=True)
    ]
    errors = [roundings * UNIT * size for size in sizes]
    y = activation(sums[0], case.act)
    error = errors[0] if case.act == 0 else STEEPEST * errors[0] + ACT_ERROR * np.abs(sums[0])
    if case.gated:
        error = error * np.abs(sums[1]) + (np.abs(y) + error) * errors[1]
        y = y * sums[1]
    y = y + residual
    return y, error + 3 * UNIT * np.abs(y) + UNIT * np.abs(residual) + 1e-30


def activation(x: Array, code: int) -> Array:
    """silu, gelu by tanh, gelu by erf in float64."""
    with np.errstate(over="ignore"):
        match ACTIVATIONS[code]:
            case "silu":
                return x / (1 + np.exp(-x))
            case "gelu_tanh":
                return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            case "gelu_erf":
                return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
            case _:
                return x


def test_a_row_range_of_a_weight_at_a_time(device: Any) -> None:
    """Loading in chunks, from several sources of other types, gives the same weight as at once."""
    rng = np.random.default_rng(5)
    w = rounded(rng.standard_normal((96, 70)), "bf16")
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(70, "bf16"), maker.slot(96)
    weight = maker.matrix(96, 70, "bf16")
    maker.op("linear", (x_slot,), (y_slot,), (weight,))
    with each(device, maker) as benches:
        for bench in benches:
            bench.put(x_slot, rng.standard_normal((3, 70)))
            bench.matrix(weight, w)
            bench.run(Span(3))
            whole = bench.get(y_slot, 3)
            bench.matrix(weight, np.zeros_like(w))
            rows = np.arange(32, dtype=np.int32)
            for row0 in (64, 0, 32):
                halves = [w[row0 : row0 + 16][::-1].copy(), w[row0 + 16 : row0 + 32].copy()]
                index = np.concatenate([15 - rows[:16], rows[:16]]).astype(np.int32)
                bench.executable.write_rows(weight, row0, halves, "f32", (rows >= 16).astype(np.int32), index)
            bench.run(Span(3))
            np.testing.assert_array_equal(bench.get(y_slot, 3), whole)


def test_columns_of_a_wider_activation(device: Any) -> None:
    """Input and output may be views; the neighbours stay as they are."""
    rng = np.random.default_rng(6)
    w = rounded(rng.standard_normal((64, 32)), "bf16")
    maker = Maker(device.info)
    x_all, y_all = maker.slot(96, "bf16"), maker.slot(128)
    x_slot, y_slot = maker.view(x_all, 32, 32), maker.view(y_all, 32, 64)
    weight = maker.matrix(64, 32, "bf16")
    maker.op("linear", (x_slot,), (y_slot,), (weight,))
    for rows in (1, 5, 32, 33, 70):
        x = rounded(rng.standard_normal((rows, 96)), "bf16")
        with each(device, maker) as benches:
            for bench in benches:
                bench.matrix(weight, w)
                bench.put(x_all, x)
                bench.put(y_all, np.full((rows, 128), 7.0))
                bench.run(Span(rows))
                got = bench.get(y_all, rows)
                expected = x[:, 32:64].astype(np.float64) @ w.T
                assert_close(got[:, 32:96], expected, 20 * UNIT * (np.abs(x[:, 32:64]) @ np.abs(w).T))
                assert (got[:, :32] == 7).all() and (got[:, 96:] == 7).all()
