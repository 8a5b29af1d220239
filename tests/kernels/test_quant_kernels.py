"""Quantized products on every tier against exact integers, bit for bit, in the shapes that choose between kernels.

Activations are whole multiples of powers of two, so that the op in front of the product has nothing to round; what it
rounds is tested by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import exact
import numpy as np
import pytest
from one_op import Array, Bench, Maker, Span, rounded

from dashinfer_lite.weights.grid import Codes

Opened = Callable[..., Any]
LARGEST = {1: 127, 2: 32512}

# One line a row or plane, half a tile, a tile, two, a band and a bit, several bands.
ROWS = (1, 2, 3, 8, 9, 16, 17, 27, 33, 70)
# K and group: parts of a group, groups that share a block, short last groups, a group less than a cell.
COLUMNS = {
    "whole": (1300, 1300),
    "beyond int32": (4200, 4200),  # with 4 bits too
    "large": (2500, 1200),
    "g128": (2200, 128),
    "g100": (330, 100),
    "g32": (96, 32),
    "less than a cell": (5, 5),
}


def operands(seed: int, rows: int, n: int, k: int, group: int, bits: int, planes: int) -> tuple[Codes, Array, Array]:
    """A weight, and the integers and scales of activations; the second row is as large as it can be."""
    rng = np.random.default_rng(seed)
    groups, top, largest = -(-k // group), (1 << bits) - 1, LARGEST[planes]
    codes = rng.integers(0, top + 1, (n, k)).astype(np.uint8)
    zeros = rng.integers(0, top + 2, (n, groups)).astype(np.int16)
    codes[:3], zeros[:3] = top, 0
    codes[3:5], zeros[3:5] = 0, top + 1
    scales = rounded(rng.random((n, groups)) * 0.1 + 0.01, "bf16")
    integers = rng.integers(-largest, largest + 1, (rows, k))
    integers[1:2] = largest
    integers[:, ::group] = -largest
    return Codes(codes, scales, zeros), integers, (2.0 ** rng.integers(-6, 3, (rows, groups))).astype(np.float32)


def product(weight: Codes, integers: Array, scales: Array, group: int) -> Array:
    """Σ (q - zero) · a of a group in 64-bit integers, rounded once, times both scales, group by group."""
    total = np.zeros((len(integers), len(weight.codes)), np.float32)
    for g in range(scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        exact_sum = (
            integers[:, part].astype(np.int64) @ (weight.codes[:, part].astype(np.int64) - weight.zeros[:, g : g + 1]).T
        )
        total = exact.fma(exact_sum.astype(np.float32), np.multiply.outer(scales[:, g], weight.scales[:, g]), total)
    return total


class Product:
    """x → integers → product with one weight, on a device; `adds`: to what y holds."""

    def __init__(
        self,
        device: Any,
        n: int,
        k: int,
        group: int,
        bits: int,
        planes: int,
        *,
        adds: bool = False,
        rows: int = max(ROWS),
    ) -> None:
        maker = Maker(device.info, tokens=rows)
        self.n, self.k, self.group = n, k, group
        self.x, self.y = maker.slot(k), maker.slot(n)
        self.weight = maker.quantized(n, k, bits=bits, group=group, scales="bf16")
        self.planes, self.grid = maker.quantize(self.x, k, group=group, planes=planes)
        maker.op("linear", (self.planes, self.y if adds else -1, self.grid), (self.y,), (self.weight,))
        self.bench = Bench(device, maker)

    def run(self, integers: Array, scales: Array, before: Array | None = None) -> Array:
        x = integers * np.repeat(scales, self.group, axis=1)[:, : self.k]
        self.bench.put(self.x, x.astype(np.float32))
        if before is None:
            self.bench.poison(self.y, len(x))
        else:
            self.bench.put(self.y, before)
        self.bench.run(Span(len(x)))
        result: Array = self.bench.get(self.y, len(x))[:, : self.n]
        return result


@cache
def product_of(columns: str, bits: int, planes: int) -> tuple[Codes, Array, Array, Array]:
    """A weight, activations and what the specification says of them; the same for every tier."""
    k, group = COLUMNS[columns]
    weight, integers, scales = operands(k + bits, max(ROWS), 150, k, group, bits, planes)
    return weight, integers, scales, product(weight, integers, scales, group)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", COLUMNS)
def test_products(tier: str, opened: Opened, columns: str, bits: int, planes: int) -> None:
    """Every row count gives the same bits, and they are those of the specification."""
    (k, group), n = COLUMNS[columns], 150
    weight, integers, scales, expected = product_of(columns, bits, planes)
    under_test = Product(opened(tier), n, k, group, bits, planes)
    under_test.bench.codes(under_test.weight, weight)
    for rows in ROWS:
        np.testing.assert_array_equal(under_test.run(integers[:rows], scales[:rows]), expected[:rows], f"{rows} rows")
    under_test.bench.close()


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("columns", ["whole", "g128"])
def test_products_onto_their_own_output(tier: str, opened: Opened, columns: str, planes: int) -> None:
    """A row that is computed twice, as where the tiles of a low band overlap, must not be added twice."""
    (k, group), n = COLUMNS[columns], 150
    weight, integers, scales, expected = product_of(columns, 8, planes)
    before = np.random.default_rng(planes).standard_normal(expected.shape).astype(np.float32)
    under_test = Product(opened(tier), n, k, group, 8, planes, adds=True)
    under_test.bench.codes(under_test.weight, weight)
    for rows in ROWS:
        got = under_test.run(integers[:rows], scales[:rows], before[:rows])
        np.testing.assert_array_equal(got, (expected + before)[:rows], f"{rows} rows")
    under_test.bench.close()


@pytest.mark.parametrize("rows", [3, 20, 33])
def test_sums_about_the_end_of_int32(tier: str, opened: Opened, rows: int) -> None:
    """Rows whose sums just stay within int32, just leave it, or would without their zero points."""
    k, n = 1300, 64
    weight, integers, scales = operands(rows, 60, n, k, k, 8, 2)
    weight.codes[5:9], weight.zeros[5:9] = 255, 256
    weight.codes[32:], weight.zeros[32:] = 0, 256  # a panel of their own: its sums are zero, what is taken off is not
    sums = 2.0 ** np.linspace(29.0, 33.0, 30)
    for i, size in enumerate(np.concatenate([sums, -sums])):
        integers[i, 1:] = np.clip(round(size / (255 * k)), -LARGEST[2], LARGEST[2])
    expected = product(weight, integers, scales, k)
    under_test = Product(opened(tier), n, k, k, 8, 2)
    under_test.bench.codes(under_test.weight, weight)
    for begin in range(0, 60, rows):
        part = slice(begin, begin + rows)
        np.testing.assert_array_equal(under_test.run(integers[part], scales[part]), expected[part], f"from {begin}")
    under_test.bench.close()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("integer", [32384, -32384, 32512])
def test_the_largest_group(tier: str, opened: Opened, bits: int, integer: int) -> None:
    """65536 of the largest codes: 32384 is 127 · 256 - 128, so both planes' sums come closest to the end of int32.

    In a single row, the pairs of 4-bit codes and -128 come closest to the end of int16.
    """
    k, n = 65536, 32
    weight, _, scales = operands(bits, 3, n, k, k, bits, 2)
    weight.codes[:] = (1 << bits) - 1
    integers = np.full((3, k), integer)
    integers[:, 0] = LARGEST[2]  # so that the scale is a power of two
    under_test = Product(opened(tier), n, k, k, bits, 2)
    under_test.bench.codes(under_test.weight, weight)
    expected = product(weight, integers, scales, k)
    for rows in (1, 3):
        np.testing.assert_array_equal(under_test.run(integers[:rows], scales[:rows]), expected[:rows], f"{rows} rows")
    under_test.bench.close()


def test_the_largest_group_of_small_high_planes(tier: str, opened: Opened) -> None:
    """The high plane's sums and Σa are small, and the low plane's take T beyond int32."""
    k, n = 65536, 32
    weight, integers, scales = operands(2, 20, n, k, k, 8, 2)
    weight.codes[:], weight.codes[:, -400:], weight.zeros[:] = 255, 0, 0
    integers[:] = 127
    integers[:, :16384] += 256
    integers[:, -400:] = -LARGEST[2]
    under_test = Product(opened(tier), n, k, k, 8, 2)
    under_test.bench.codes(under_test.weight, weight)
    expected = product(weight, integers, scales, k)
    for rows in (3, 20):
        np.testing.assert_array_equal(under_test.run(integers[:rows], scales[:rows]), expected[:rows], f"{rows} rows")
    under_test.bench.close()


@pytest.mark.parametrize("planes", [1, 2])
def test_planes_beyond_the_caches(tier: str, opened: Opened, planes: int) -> None:
    """More than 2 MiB of integers, which threads write in other shares than they read."""
    rows, n, k = 70, 96, 33_000
    weight, integers, scales = operands(planes, rows, n, k, k, 8, planes)
    under_test = Product(opened(tier, 3), n, k, k, 8, planes)
    under_test.bench.codes(under_test.weight, weight)
    np.testing.assert_array_equal(under_test.run(integers, scales), product(weight, integers, scales, k))
    under_test.bench.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(tier: str, opened: Opened, threads: int) -> None:
    """Panels and bands are shared out, rows where there are enough for each; two groups of 16 panels and a rest."""
    rows, n, k, group = 550, 35 * 32, 256, 128
    weight, integers, scales = operands(threads, rows, n, k, group, 4, 2)
    under_test = Product(opened(tier, threads), n, k, group, 4, 2, rows=rows)
    under_test.bench.codes(under_test.weight, weight)
    expected = product(weight, integers, scales, group)
    for count in (1, 70, rows):
        np.testing.assert_array_equal(under_test.run(integers[:count], scales[:count]), expected[:count])
    under_test.bench.close()


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(("k", "group"), [(1000, 1000), (1000, 128), (130, 50)])
def test_activations(tier: str, opened: Opened, k: int, group: int, planes: int) -> None:
    """Numbers of any size: scales, sums and the integers that a weight of ones and zeros shows."""
    rows, groups = 37, -(-k // group)
    rng = np.random.default_rng(k + group)
    x = (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-12, 12, (rows, 1))).astype(np.float32)
    x[3], x[4, 7], x[5, 9] = 0, np.inf, np.nan
    x[6] *= np.float32(2.0**-120)
    maker = Maker(opened(tier).info)
    slot = maker.slot(k)
    _, grid = maker.quantize(slot, k, group=group, planes=planes)
    bench = Bench(opened(tier), maker)
    bench.put(slot, x)
    bench.run(Span(rows))
    got = bench.get(grid, rows)
    for g in range(groups):
        scales, sums = integers_of(x[:, g * group : (g + 1) * group], planes)
        np.testing.assert_array_equal(got[:, g], scales)
        np.testing.assert_array_equal(np.ascontiguousarray(got[:, groups + g]).view(np.int32), sums)
    bench.close()


def integers_of(x: Array, planes: int) -> tuple[Array, Array]:
    """Scales of rows, and the sums of their integers."""
    one, tiny = np.float32(1), np.float32(2.0**-126)
    with np.errstate(all="ignore"):
        x = np.where(np.abs(x) < tiny, np.float32(0), x)
        largest = np.abs(x).max(axis=1)
        finite = np.isfinite(largest)
        scale = largest / np.float32(LARGEST[planes])
        empty = ~finite | (scale < tiny)
        scale = np.where(empty, one, scale)
        high = (one / scale)[:, None]
        low = exact.fma(-scale[:, None], high, np.ones_like(high)) * high
        a = np.rint(exact.fma(x, np.broadcast_to(high, x.shape), x * low))
    a = np.where(empty[:, None], 0, a).astype(np.int32)
    return np.where(finite, scale, np.float32(np.nan)), a.sum(axis=1, dtype=np.int32)
