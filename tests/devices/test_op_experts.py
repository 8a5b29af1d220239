"""Mixtures of experts: the choice against NumPy, products and sums against float64, and against linears bit for bit.

A row of experts is the same arithmetic as a row of a linear, so that what the tests of linears hold is held here by
equality: one linear for each expert, over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import exact
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Bench, Maker, Span, assert_bits, assert_close, each, examples, interleaved, rounded

from dashinfer_lite.graph.instant_quant import instant_quant
from dashinfer_lite.weights.grid import Codes, Grid

UNIT = 2.0**-24

# ---- the choice ------------------------------------------------------------------------------------------------------


def chosen_of(logits: Array, k: int) -> Array:
    """The ids of the k largest, of equal ones the lower, ascending."""
    order = sorted(range(len(logits)), key=lambda e: (-logits[e] if logits[e] == logits[e] else np.inf, e))
    return np.sort(order[:k])


@contextmanager
def routers(device: Any, experts: int, k: int, **attrs: Any) -> Iterator[tuple[list[Bench], int, int]]:
    maker = Maker(device.info, tokens=70, chosen=k)
    x, y = maker.slot(experts), maker.slot(2 * k)
    maker.op("route", (x,), (y,), experts=experts, chosen=k, **{"scale": 1.0, **attrs})
    with each(device, maker) as benches:
        yield benches, x, y


@examples(12)
@given(
    rows=st.integers(1, 70),
    experts=st.one_of(st.integers(1, 40), st.sampled_from([64, 128, 1000])),
    part=st.floats(0, 1),
    renormalize=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    levels=st.sampled_from([0, 3, 50]),
    seed=st.integers(0, 2**32 - 1),
)
def test_route(
    device: Any, rows: int, experts: int, part: float, renormalize: bool, scale: float, levels: int, seed: int
) -> None:
    """Any E, k from 1 to E; with a few levels of logits most of them are equal."""
    k = 1 + int(part * (experts - 1))
    rng = np.random.default_rng(seed)
    logits = rounded(3 * rng.standard_normal((rows, experts)), "f32")
    if levels:
        logits = np.rint(logits * levels / 4) / np.float32(4)
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    with routers(device, experts, k, renormalize=int(renormalize), scale=scale) as (benches, x, y):
        for bench in benches:
            bench.put(x, logits)
            bench.poison(y, rows)
            bench.run(Span(rows))
            got = bench.get(y, rows)
            ids = np.ascontiguousarray(got[:, :k]).view(np.int32)
            np.testing.assert_array_equal(ids, [chosen_of(row, k) for row in logits])
            wanted = np.take_along_axis(p, ids, 1)
            if renormalize:
                wanted = wanted / wanted.sum(1, keepdims=True)
            assert_close(got[:, k : 2 * k], wanted * scale, (experts / 16 + k + 20) * UNIT * wanted * scale + 1e-30)
            assert not got[:, 2 * k :].any()


@pytest.mark.parametrize("renormalize", [0, 1])
def test_route_bits(tier: str, device: Any, renormalize: int) -> None:
    """The specification's own order of operations."""
    rng = np.random.default_rng(1)
    rows, experts, k = 9, 45, 6
    logits = rounded(2 * rng.standard_normal((rows, experts)), "f32")
    e = exact.exp(logits - logits.max(1, keepdims=True))
    p = e / exact.row_sum(e)[:, None]
    with routers(device, experts, k, renormalize=renormalize, scale=0.3) as (benches, x, y):
        benches[0].put(x, logits)
        benches[0].run(Span(rows))
        got = benches[0].get(y, rows)
    weights = np.take_along_axis(p, np.stack([chosen_of(row, k) for row in logits]), 1)
    if renormalize:
        total = weights[:, 0]
        for j in range(1, k):
            total = total + weights[:, j]
        weights = weights / total[:, None]
    assert_bits(device, got[:, k : 2 * k], weights * np.float32(0.3))


def test_route_of_what_is_no_number(device: Any) -> None:
    """Ids stay ids, whatever the logits are; weights show it."""
    rows = [[np.nan, 1, 2, 3, 4], [np.nan] * 5, [np.inf, 1, 2, 3, 4], [-np.inf] * 5, [1, -np.inf, 2, -np.inf, -np.inf]]
    logits = np.array(rows, np.float32)
    with routers(device, 5, 3) as (benches, x, y):
        for bench in benches:
            bench.put(x, logits)
            bench.run(Span(len(rows)))
            got = bench.get(y, len(rows))
            ids = np.ascontiguousarray(got[:, :3]).view(np.int32).tolist()
            assert ids == [[2, 3, 4], [0, 1, 2], [0, 3, 4], [0, 1, 2], [0, 1, 2]]
            assert np.isnan(got[:4, 3:6]).any(1).all()
            np.testing.assert_allclose(got[4, 3:6], np.exp([-1, -np.inf, 0]) / (1 + np.exp(-1)), rtol=1e-6)


# ---- products --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """T tokens with k of E experts each, x [., K] times w [E·N,K]; `mode` is a type, or bits and planes."""

    tokens: int
    experts: int
    k: int
    columns: int
    n: int
    mode: str
    act: int
    gated: bool
    residual: str
    out: str
    choice: str
    seed: int

    @property
    def quantized(self) -> tuple[int, int, int] | None:
        """Bits, group and planes."""
        return {"a16w8": (8, 0, 2), "a16w4": (4, 32, 2), "a8w8": (8, 0, 1)}.get(self.mode)

    def routing(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """ids[T,k] ascending and different, weights[T,k]."""
        weights = rounded(rng.random((self.tokens, self.k)), "f32")
        if self.choice == "one":
            first = int(rng.integers(0, self.experts - self.k + 1))
            return np.tile(np.arange(first, first + self.k), (self.tokens, 1)), weights
        usable = self.experts if self.choice == "all" else max(self.k, self.experts // 3)
        ids = [np.sort(rng.permutation(usable)[: self.k]) for _ in range(self.tokens)]
        return np.array(ids), weights


@st.composite
def cases(draw: st.DrawFn) -> Case:
    experts = draw(st.sampled_from([1, 2, 3, 5, 8, 13]))
    gated = draw(st.booleans())
    return Case(
        tokens=draw(st.one_of(st.integers(1, 8), st.integers(1, 200))),
        experts=experts,
        k=draw(st.integers(1, experts)),
        columns=draw(st.one_of(st.integers(1, 100), st.sampled_from([128, 256]))),
        n=draw(st.integers(1, 100)),
        mode=draw(st.sampled_from(["f32", "f16", "bf16", "a16w8", "a16w4", "a8w8"])),
        act=draw(st.sampled_from([1, 2, 3] if gated else [0, 0, 1])),
        gated=gated,
        residual=draw(st.sampled_from(["", "apart", "in place"])),
        out=draw(st.sampled_from(["f32", "bf16"])),
        choice=draw(st.sampled_from(["all", "some", "one"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


class Layer:
    """An expert_linear, or an expert_sum, and one linear for each expert over the same rows."""

    def __init__(self, device: Any, case: Case, sums: bool, tokens: int = 0) -> None:
        self.case, self.sums = case, sums
        m = self.maker = Maker(device.info, tokens=tokens or case.tokens, chosen=case.k)
        self.rows = "E" if sums else "T"
        gated = case.gated and not sums
        self.width = m.pad(case.n)
        self.x = m.slot(case.columns, "bf16" if case.mode == "bf16" else "f32", self.rows)
        self.routing = m.slot(2 * case.k)
        per_expert = self.width * (1 + gated)
        self.weight = self.matrix(case.experts * per_expert)
        self.single = [self.matrix(per_expert) for _ in range(case.experts)]
        self.y = m.slot(case.n, "f32" if sums else case.out, "T" if sums else "E")
        self.plain = [m.slot(case.n, "f32" if sums else case.out, self.rows) for _ in self.single]
        x, grid = self.x, -1
        if case.quantized:
            _, group, planes = case.quantized
            x, grid = m.quantize(self.x, case.columns, group=group, planes=planes)
        act = 0 if sums else case.act + 16 * gated
        for weight, y in zip(self.single, self.plain, strict=True):
            m.op("linear", (x, -1, grid), (y,), (weight,), act=act)
        self.residual = -1
        if sums:
            if case.residual:
                self.residual = self.y if case.residual == "in place" else m.slot(case.n)
            inputs = (x, self.routing, self.residual, grid)
            m.op("expert_sum", inputs, (self.y,), (self.weight,), experts=case.experts)
        else:
            m.op("expert_linear", (x, self.routing, grid), (self.y,), (self.weight,), experts=case.experts, act=act)

    def matrix(self, n: int) -> int:
        if self.case.quantized:
            bits, group, _ = self.case.quantized
            return self.maker.quantized(n, self.case.columns, bits=bits, group=group)
        return self.maker.matrix(n, self.case.columns, self.case.mode)

    def fill(self, bench: Bench) -> None:
        """Weights; their rows are those that a model's experts have."""
        case, rng = self.case, np.random.default_rng(self.case.seed)
        parts = []
        for _ in range(case.experts):
            halves = [
                rounded(rng.standard_normal((case.n, case.columns)), "f32")
                for _ in range(1 + (not self.sums and case.gated))
            ]
            rows = np.pad(halves[0], ((0, self.width - case.n), (0, 0)))
            parts.append(interleaved(halves, self.width) if len(halves) == 2 else rows)
        if case.quantized is None:
            for weight, part in [*zip(self.single, parts, strict=True), (self.weight, np.concatenate(parts))]:
                bench.matrix(weight, part)
            return
        codes = [instant_quant(part, Grid(*case.quantized[:2])) for part in parts]
        for weight, rows in zip(self.single, codes, strict=True):
            bench.codes(weight, rows)
        bench.codes(self.weight, Codes(*map(np.concatenate, zip(*codes, strict=True))))

    def run(self, bench: Bench, x: Array, ids: Array, weights: Array, residual: Array) -> tuple[Array, Array]:
        """What the experts gave, and what follows from the linears."""
        case, tokens = self.case, len(ids)
        routing = np.concatenate([ids.astype(np.int32).view(np.float32), weights], axis=1)
        bench.put(self.x, x)
        bench.put(self.routing, routing)
        bench.poison(self.y, tokens if self.sums else tokens * case.k)
        if self.residual >= 0:
            bench.put(self.residual, residual)
        bench.run(Span(tokens))
        by_expert = np.stack([bench.get(slot, len(x)) for slot in self.plain])
        flat, source = np.clip(ids, 0, case.experts - 1).reshape(-1), np.arange(tokens * case.k)
        if not self.sums:
            return bench.get(self.y, tokens * case.k), by_expert[flat, source // case.k]
        rows = by_expert[flat, source].reshape(tokens, case.k, -1)
        total = np.zeros((tokens, self.width), np.float32)
        if self.residual >= 0:
            total[:, : case.n] = residual
        for j in range(case.k):
            total = exact.fma(np.broadcast_to(weights[:, j : j + 1], total.shape), rows[:, j], total)
        return bench.get(self.y, tokens), total


def inputs_of(case: Case, sums: bool) -> tuple[Array, Array, Array, Array]:
    """x, ids, weights, residual."""
    rng = np.random.default_rng(case.seed + 1)
    ids, weights = case.routing(rng)
    rows = case.tokens * case.k if sums else case.tokens
    x = rounded(rng.standard_normal((rows, case.columns)), "bf16" if case.mode == "bf16" else "f32")
    return x, ids, weights, rounded(rng.standard_normal((case.tokens, case.n)), "f32")


def check(device: Any, case: Case, sums: bool) -> None:
    layer = Layer(device, case, sums)
    with each(device, layer.maker) as benches:
        for bench in benches:
            layer.fill(bench)
            got, wanted = layer.run(bench, *inputs_of(case, sums))
            assert_bits(device, got, wanted)


@pytest.mark.parametrize("sums", [False, True])
@examples(10)
@given(case=cases())
def test_experts_are_linears(device: Any, sums: bool, case: Case) -> None:
    """Row by row, bit for bit: a linear's product, in sums one fma for each expert in ascending order."""
    check(device, case, sums)


BIG = Case(1, 5, 3, 420, 400, "bf16", 1, True, "in place", "bf16", "all", 5)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("mode", ["bf16", "a16w8"])
@pytest.mark.parametrize(("tokens", "choice"), [(1, "all"), (9, "all"), (100, "one")])
def test_experts_that_are_shared_out(device: Any, sums: bool, mode: str, tokens: int, choice: str) -> None:
    """Matrices large enough to be cut into tasks."""
    if device.info.tier == "scalar" and tokens > 9:
        pytest.skip("slow, and the same for all tiers")
    case = replace(BIG, mode=mode, tokens=tokens, choice=choice)
    layer = Layer(device, case, sums)
    bench = Bench(device, layer.maker)
    layer.fill(bench)
    got, wanted = layer.run(bench, *inputs_of(case, sums))
    bench.close()
    assert_bits(device, got, wanted)


@pytest.mark.parametrize("sums", [False, True])
def test_more_rows_than_fit_at_a_time(device: Any, sums: bool) -> None:
    """All tokens on one expert: several chunks of rows, and several ranges of columns."""
    case = replace(BIG, tokens=600, experts=2, k=1, columns=40, n=600, out="f32", choice="one", seed=6)
    layer = Layer(device, case, sums)
    bench = Bench(device, layer.maker)
    layer.fill(bench)
    got, wanted = layer.run(bench, *inputs_of(case, sums))
    bench.close()
    assert_bits(device, got, wanted)


@pytest.mark.parametrize("mode", ["bf16", "a16w8"])
@pytest.mark.parametrize("sums", [False, True])
def test_a_row_does_not_know_its_company(device: Any, sums: bool, mode: str) -> None:
    """Some tokens of a step, in a step of their own, where experts have other rows: the same bits."""
    case = replace(BIG, tokens=90, columns=100, n=70, experts=7, mode=mode)
    layer = Layer(device, case, sums)
    bench = Bench(device, layer.maker)
    layer.fill(bench)
    x, ids, weights, residual = inputs_of(case, sums)
    share = 1 if sums else case.k  # rows of the output for each of a token's
    whole, _ = layer.run(bench, x, ids, weights, residual)
    whole = whole.reshape(case.tokens, share, -1)
    for kept in ([3], [89, 0], range(10, 30), range(25, 90), range(0, 90, 2)):
        rows = (np.array(kept)[:, None] * case.k + np.arange(case.k)).reshape(-1) if sums else list(kept)
        got, _ = layer.run(bench, x[rows], ids[list(kept)], weights[list(kept)], residual[list(kept)])
        assert_bits(device, got.reshape(len(kept), share, -1), whole[list(kept)])
    bench.close()


@pytest.mark.parametrize("sums", [False, True])
def test_experts_that_do_not_exist(device: Any, sums: bool) -> None:
    """Ids that no router writes read no other memory: they are the nearest expert."""
    case = replace(BIG, tokens=5, columns=40, n=40, experts=4, k=2)
    layer = Layer(device, case, sums)
    x, _, weights, residual = inputs_of(case, sums)
    ids = np.array([[-1, 4], [0, 1 << 30], [-(1 << 31), (1 << 31) - 1], [2, 3], [-5, 2]])
    with each(device, layer.maker) as benches:
        for bench in benches:
            layer.fill(bench)
            got, wanted = layer.run(bench, x, ids, weights, residual)
            assert_bits(device, got, wanted)


# ---- gates -----------------------------------------------------------------------------------------------------------


@examples(8)
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 100),
    types=st.tuples(st.sampled_from(["f32", "bf16"]), st.sampled_from(["f32", "bf16"])),
    in_place=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gate_rows(device: Any, rows: int, cols: int, types: tuple[str, str], in_place: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, gate = rounded(rng.standard_normal((rows, cols)), types[0]), rounded(4 * rng.standard_normal((rows, 3)), "f32")
    maker = Maker(device.info)
    x_slot, g_slot = maker.slot(cols, types[0]), maker.slot(3)
    y_slot = x_slot if in_place else maker.slot(cols, types[1])
    maker.op("gate_rows", (x_slot, g_slot), (y_slot,))
    out = types[0] if in_place else types[1]
    expected = x / (1 + np.exp(-gate[:, :1].astype(np.float64)))
    with each(device, maker) as benches:
        for bench in benches:
            bench.poison(y_slot, rows)
            bench.put(x_slot, x)
            bench.put(g_slot, gate)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            assert_close(got[:, :cols], expected, (2.0**-8 if out == "bf16" else 1e-6) * np.abs(expected) + 1e-30)
            assert not got[:, cols:].any()
