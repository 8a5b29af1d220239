"""Kernels against the specification in NumPy, bit for bit: products, functions, norms, rotation, attention.

A twin that only came close would show nothing: any other order of additions differs somewhere in these sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import exact
import numpy as np
import pytest
from one_op import Array, Bench, Maker, Span, bf16, rounded

from dashinfer_lite.graph.program import KvSpec

Opened = Callable[..., Any]


def normal(seed: int, *shape: int, dtype: str = "f32") -> Array:
    """Numbers of ordinary size, rounded to a type."""
    return rounded(np.random.default_rng(seed).standard_normal(shape), dtype)


def same_bits(got: Array, expected: Array) -> None:
    """Equal as bits: -0 is not 0."""
    np.testing.assert_array_equal(
        np.asarray(got, np.float32).view(np.uint32), np.asarray(expected, np.float32).view(np.uint32)
    )


def test_fma_of_the_twin() -> None:
    """No fp32 number is nearer to the exact result, also where double precision makes it a tie."""
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.standard_normal(300).astype(np.float32) * np.float32(2.0) ** rng.integers(-40, 3, 300) for _ in range(3)
    )
    for x, y, z in zip(a, b, c, strict=True):
        want, got = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), exact.fma(x, y, z)
        distance = abs(Fraction(float(got)) - want)
        for side in (np.inf, -np.inf):
            assert distance <= abs(Fraction(float(np.nextafter(got, np.float32(side)))) - want)
    tie = np.float32(1 + 2.0**-12)
    assert exact.fma(tie, tie, np.float32(2.0**-60)) == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert exact.fma(tie, tie, np.float32(-(2.0**-60))) == np.float32(1 + 2.0**-11)
    assert exact.multiply_add(tie, tie, np.float32(2.0**-60)) == np.float32(1 + 2.0**-11)


# ---- products --------------------------------------------------------------------------------------------------------

SHAPES = {
    "one cell": (1, 32, 32),
    "a tail of columns": (3, 45, 70),
    "decode": (5, 64, 300),
    "two bands": (33, 40, 96),
    "one full segment": (2, 33, 2048),
    "two segments": (17, 32, 2049),
    "three uneven segments": (70, 33, 4200),
}


@cache
def product_of(shape: str, dtype: str) -> tuple[Array, Array, Array]:
    """x, w and what the specification says of them; the same for every tier."""
    rows, n, k = SHAPES[shape]
    if dtype != "bf16" and rows > 32:
        rows = 9
    x, w = normal(1, rows, k, dtype="bf16" if dtype == "bf16" else "f32"), normal(2, n, k, dtype=dtype)
    return x, w, exact.product(x, w, dtype)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(tier: str, opened: Opened, dtype: str, shape: str) -> None:
    """bf16 with plain additions and multiplications, fp32 and fp16 with fused ones."""
    x, w, expected = product_of(shape, dtype)
    rows, n, k = len(x), *w.shape
    device = opened(tier)
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(k, "bf16" if dtype == "bf16" else "f32"), maker.slot(n)
    weight = maker.matrix(n, k, dtype)
    maker.op("linear", (x_slot,), (y_slot,), (weight,))
    bench = Bench(device, maker)
    bench.matrix(weight, w)
    bench.put(x_slot, x)
    bench.run(Span(rows))
    same_bits(bench.get(y_slot, rows)[:, :n], expected)
    bench.close()


@pytest.mark.parametrize("act", exact.ACTIVATIONS)
@pytest.mark.parametrize("out", ["f32", "bf16"])
def test_epilogue(tier: str, opened: Opened, act: str, out: str) -> None:
    """Bias, activation, gate, residual, one rounding: in this order."""
    rows, n, k = 19, 32, 64
    x, w, b, residual = (
        normal(3, rows, k, dtype="bf16"),
        normal(4, 2 * n, k, dtype="bf16"),
        normal(5, 2 * n),
        normal(6, rows, n),
    )
    device = opened(tier)
    maker = Maker(device.info)
    x_slot, y_slot, r_slot = maker.slot(k, "bf16"), maker.slot(n, out), maker.slot(n)
    weights = [maker.matrix(2 * n, k, "bf16"), maker.vector(2 * n)]
    maker.op("linear", (x_slot, r_slot), (y_slot,), weights, act=16 + 1 + list(exact.ACTIVATIONS).index(act))
    bench = Bench(device, maker)
    bench.matrix(weights[0], w)
    bench.vector(weights[1], b)
    bench.put(x_slot, x)
    bench.put(r_slot, residual)
    bench.run(Span(rows))
    sums = (exact.product(x, w, "bf16") + b).reshape(rows, n // 16, 2, 16)
    gate, up = sums[:, :, 0].reshape(rows, n), sums[:, :, 1].reshape(rows, n)
    same_bits(bench.get(y_slot, rows), rounded(exact.ACTIVATIONS[act](gate) * up + residual, out))
    bench.close()


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", exact.ACTIVATIONS)
def test_activations(tier: str, opened: Opened, act: str) -> None:
    device = opened(tier)
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(1024), maker.slot(1024)
    maker.op("act", (x_slot,), (y_slot,), act=1 + list(exact.ACTIVATIONS).index(act))
    x = np.concatenate(
        [normal(7, 2, 1024), 20 * normal(8, 2, 1024), np.linspace(-80, 80, 1024, dtype=np.float32)[None]]
    )
    bench = Bench(device, maker)
    bench.put(x_slot, x)
    bench.run(Span(len(x)))
    same_bits(bench.get(y_slot, len(x)), exact.ACTIVATIONS[act](x))
    bench.close()


def test_softcap(tier: str, opened: Opened) -> None:
    device = opened(tier)
    maker = Maker(device.info)
    x_slot = maker.slot(512)
    maker.op("softcap", (x_slot,), (x_slot,), cap=30.0)
    x = 40 * normal(9, 3, 512)
    bench = Bench(device, maker)
    bench.put(x_slot, x)
    bench.run(Span(3))
    same_bits(bench.get(x_slot, 3), np.float32(30) * exact.tanh(x / np.float32(30)))
    bench.close()


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("cols", [5, 32, 72, 1000])
@pytest.mark.parametrize("out", ["f32", "bf16"])
def test_norms(tier: str, opened: Opened, op: str, cols: int, out: str) -> None:
    rows = 35
    x, w, b = 3 * normal(10, rows, cols) + 1, normal(11, cols), normal(12, cols)
    device = opened(tier)
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(cols), maker.slot(cols, out)
    weights = [maker.vector(cols), maker.vector(cols)][: 1 + (op == "layer_norm")]
    maker.op(op, (x_slot,), (y_slot,), weights, cols=cols, eps=1e-5)
    bench = Bench(device, maker)
    for weight, values in zip(weights, (w, b), strict=False):
        bench.vector(weight, values)
    bench.put(x_slot, x)
    bench.run(Span(rows))
    expected = exact.rms_norm(x, w, 1e-5) if op == "rms_norm" else exact.layer_norm(x, w, b, 1e-5)
    same_bits(bench.get(y_slot, rows)[:, :cols], rounded(expected, out))
    bench.close()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("size", "rotary"), [(64, 64), (80, 20), (10, 10), (256, 128)])
def test_head_norm_and_rotation(tier: str, opened: Opened, interleaved: bool, size: int, rotary: int) -> None:
    rows, heads = 7, 3
    x, w = normal(13, rows, heads, size), normal(14, size)
    angle = np.random.default_rng(15).uniform(0, 7, (rows, rotary // 2))
    table = np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    device = opened(tier)
    maker = Maker(device.info)
    x_slot, table_slot, weight = (
        maker.slot(heads * maker.pad_head(size)),
        maker.slot(rotary),
        maker.vector(maker.pad_head(size)),
    )
    maker.op("head_norm", (x_slot,), (x_slot,), (weight,), heads=heads, D=size, eps=1e-6)
    maker.op("rope", (x_slot, table_slot), (x_slot,), heads=heads, D=size, rotary=rotary, style=int(interleaved))
    bench = Bench(device, maker)
    bench.vector(weight, w)
    bench.put_heads(x_slot, x)
    bench.put(table_slot, table)
    bench.run(Span(rows))
    same_bits(bench.get_heads(x_slot, rows, heads, size), exact.rotated(exact.rms_norm(x, w, 1e-6), table, interleaved))
    bench.close()


# ---- attention -------------------------------------------------------------------------------------------------------

ATTENTION: dict[str, dict[str, Any]] = {
    "one step": {"length": 40},
    "several steps": {"length": 700, "size": 40},
    "several splits": {"length": 2100, "size": 16},
    "a window": {"length": 1500, "size": 16, "window": 600},
    "a narrow window": {"length": 1290, "size": 16, "window": 3},
    "soft cap": {"length": 300, "softcap": 20.0},
    "slopes": {"length": 1100, "size": 16, "slopes": True},
    "sinks": {"length": 1100, "size": 16, "sinks": True},
    "sinks and a window": {"length": 1300, "size": 16, "sinks": True, "window": 100},
    "heads of one sign": {"length": 40, "shift": 3.0},
}


LAST = 3


class Attended:
    """A case: its inputs, and what the specification says of its last rows; the same for every tier."""

    def __init__(self, case: str, kv_dtype: str) -> None:
        options = {"size": 32, "window": 0, "softcap": 0.0, "slopes": False, "sinks": False, "shift": 0.0}
        options |= ATTENTION[case]
        self.length, self.size, self.kv_dtype, shift = options["length"], options["size"], kv_dtype, options["shift"]
        self.q, k, v = (normal(seed, self.length, heads, self.size) for seed, heads in ((16, 2), (17, 1), (18, 1)))
        self.k, self.v = k + np.float32(shift), v - np.float32(shift)
        self.attrs = {"Hq": 2, "Hkv": 1, "D": self.size, "window": options["window"], "softcap": options["softcap"]}
        self.attrs["scale"] = self.size**-0.5
        self.slopes = np.array([0.25, 0.0625], np.float32) if options["slopes"] else None
        self.sinks = np.array([0.5, -1.25], np.float32) if options["sinks"] else None
        self.blocks = tuple(range(-(-self.length // 64)))[::-1]
        self.expected = np.stack([self.row(at) for at in range(self.length - LAST, self.length)])

    def row(self, at: int) -> Array:
        """y[Hq,D] of a position."""
        attrs, heads = self.attrs, []
        seen = range(max(0, at - attrs["window"] + 1) if attrs["window"] else 0, at + 1)
        for head in range(2):
            slope, sink = (None if of is None else of[head] for of in (self.slopes, self.sinks))
            q, k, v = self.q[at, head], self.k[:, 0], self.v[:, 0]
            cap = attrs["softcap"]
            heads.append(exact.attention(q, k, v, seen, attrs["scale"], self.kv_dtype, cap, slope=slope, sink=sink))
        return np.stack(heads)

    def bench(self, device: Any, attend: bool) -> Bench:
        """kv_write, and attention unless the cache is only to be filled; slots q, k, v, y."""
        kv = KvSpec(1, 1, self.size, self.kv_dtype, 64, len(self.blocks))  # type: ignore[arg-type]
        maker = Maker(device.info, tokens=512, kv=kv)
        q, k, v, y = (maker.slot(heads * maker.pad_head(self.size)) for heads in (2, 1, 1, 2))
        maker.op("kv_write", (k, v), Hkv=1, D=self.size)
        weights = [maker.vector(2) if given is not None else -1 for given in (self.slopes, self.sinks)]
        if attend:
            maker.op("attention", (q,), (y,), weights, **self.attrs)
        bench = Bench(device, maker, max_blocks=len(self.blocks))
        for weight, values in zip(weights, (self.slopes, self.sinks), strict=True):
            if values is not None:
                bench.vector(weight, values)
        return bench

    def run(self, bench: Bench, rows: slice) -> None:
        """One step over some positions."""
        for slot, values in enumerate((self.q, self.k, self.v)):
            bench.put_heads(slot, values[rows])
        clear = self.blocks if rows.start == 0 else ()
        bench.run(Span(rows.stop - rows.start, rows.start, blocks=self.blocks), clear=clear)


attended = cache(Attended)


@pytest.mark.parametrize("kv_dtype", ["bf16", "f32", "u8", "u4"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(tier: str, opened: Opened, kv_dtype: str, case: str) -> None:
    """The last rows of a sequence whose cache was filled in one chunk after the other."""
    case_of, device = attended(case, kv_dtype), opened(tier)
    filling, bench = case_of.bench(device, attend=False), case_of.bench(device, attend=True)
    before = case_of.length - LAST
    for start in range(0, before, 512):
        case_of.run(filling, slice(start, min(start + 512, before)))
    bench.executable.kv_write(case_of.blocks, filling.executable.kv_read(case_of.blocks))
    case_of.run(bench, slice(before, case_of.length))
    same_bits(bench.get_heads(3, LAST, 2, case_of.size), case_of.expected)
    filling.close()
    bench.close()


def test_rounding_of_the_twin() -> None:
    """To nearest even, ties included."""
    x = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    assert (bf16(x).view(np.uint32) >> 16).tolist() == [0x3F80, 0x3F82, 0x3F81]
