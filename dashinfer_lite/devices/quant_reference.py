"""Integer products of the reference device: activations to planes, exact sums, one rounding a group.

Columns are taken in groups of a scale; in memory each group is padded to a multiple of 64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dashinfer_lite.weights.grid import Codes, Grid, dequantize

if TYPE_CHECKING:
    import numpy.typing as npt

    from dashinfer_lite.graph.program import WeightSpec

    Floats = npt.NDArray[np.float32]

CELL = 64
LARGEST = {1: 127, 2: 32512}  # int8 planes → the largest integer
SMALLEST_NORMAL = np.float32(2.0**-126)


class Quantized(NamedTuple):
    """Rows as integers a[rows,K] with a scale for each group, and the sums of a: [rows,G]."""

    integers: npt.NDArray[np.int32]
    scales: Floats
    sums: npt.NDArray[np.int32]


def quantize(x: Floats, group: int, planes: int) -> Quantized:
    """x[rows,K] in groups: scale = max |x| / 32512 (one plane: 127), a = rint(x / scale).

    A group of zeros has scale 1. One that is not finite has scale NaN and integers of 0.
    """
    rows, k = x.shape
    parts = np.zeros((rows, -(-k // group), group), np.float32)
    parts.reshape(rows, -1)[:, :k] = x
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.abs(parts).max(axis=2)
        scales = largest / np.float32(LARGEST[planes])
        zero, finite = scales < SMALLEST_NORMAL, np.isfinite(largest)
        divisors = np.where(zero | ~finite, np.float32(1), scales)
        integers = np.where((zero | ~finite)[:, :, None], 0, np.rint(parts / divisors[:, :, None])).astype(np.int32)
    scales = np.where(finite, divisors, np.float32(np.nan)).astype(np.float32)
    return Quantized(integers.reshape(rows, -1)[:, :k], scales, integers.sum(axis=2, dtype=np.int32))


def to_planes(integers: npt.NDArray[np.int32], group: int, planes: int) -> npt.NDArray[np.int16]:
    """[rows, planes · padded K]: the integers, or their high bytes (a + 128) >> 8 and then what these leave."""
    rows, k = integers.shape
    groups, padded = -(-k // group), -(-group // CELL) * CELL
    whole = np.zeros((rows, groups * group), np.int32)
    whole[:, :k] = integers
    a = np.zeros((rows, groups, padded), np.int32)
    a[:, :, :group] = whole.reshape(rows, groups, group)
    high = (a + 128) >> 8
    parts = [a] if planes == 1 else [high, a - 256 * high]
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1).astype(np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A matrix [N,K] on its grid."""

    spec: WeightSpec
    rows: Codes

    @classmethod
    def empty(cls, spec: WeightSpec) -> QuantizedWeight:
        grid = (spec.n, spec.groups)
        codes = np.zeros((spec.n, spec.k), np.uint8)
        return cls(spec, Codes(codes, np.ones(grid, np.float32), np.zeros(grid, np.int16)))

    @property
    def grid(self) -> Grid:
        return Grid(4 if self.spec.dtype == "u4" else 8, self.spec.quant_group, self.spec.scale_dtype)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.rows)

    def part(self, start: int, stop: int) -> QuantizedWeight:
        """Rows [start, stop)."""
        at = slice(start, stop)
        rows = Codes(self.rows.codes[at], self.rows.scales[at], self.rows.zeros[at])
        return QuantizedWeight(replace(self.spec, n=stop - start), rows)

    def values(self, at: npt.NDArray[Any]) -> Floats:
        """Rows as numbers: (code - zero) · scale."""
        return dequantize(Codes(self.rows.codes[at], self.rows.scales[at], self.rows.zeros[at]), self.grid)

    def product(self, planes: npt.NDArray[np.int16], scales: Floats, sums: npt.NDArray[np.int32]) -> Floats:
        """y[rows,N] of quantized activations; see docs/arithmetic.md."""
        spec, weight = self.spec, self.rows
        count = planes.shape[1] // spec.k_padded
        parts = planes.reshape(len(planes), count, spec.groups, spec.k_group_padded).astype(np.float64)
        a = parts[:, 0] if count == 1 else 256 * parts[:, 0] + parts[:, 1]
        total = np.zeros((len(planes), spec.n), np.float32)
        for g in range(spec.groups):
            codes = weight.codes[:, g * spec.quant_group : (g + 1) * spec.quant_group].astype(np.float64)
            # Every product and sum here is an integer below 2⁵³, so the order of additions does not matter.
            exact = a[:, g, : codes.shape[1]] @ codes.T - np.multiply.outer(
                sums[:, g], weight.zeros[:, g].astype(np.int64)
            )
            total = fma(exact.astype(np.float32), np.multiply.outer(scales[:, g], weight.scales[:, g]), total)
        return total


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a · b + c with one rounding: the double result is rounded to odd first, so that fp32 sees no tie that is none."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = a.astype(np.float64) * b
        wide = product + c
        back = wide - product
        rest = (product - (wide - back)) + (c - back)
        bits = wide.view(np.int64)
        inexact = (rest != 0) & np.isfinite(wide) & (bits & 1 == 0)
        toward = np.where((rest > 0) == (wide > 0), 1, -1)
        result: Floats = np.where(inexact, (bits + toward).view(np.float64), wide).astype(np.float32)
    return result
