"""Matrices kept as integers: the grid that codes stand on, and the way back to numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

ScaleDType = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True, slots=True)
class Grid:
    """How a matrix w[N,K] is kept in integers: w = (code - zero) · scale.

    bits          8 or 4; codes are unsigned
    group         elements of K that one scale and one zero point cover; 0: all of them, "per channel"
    scale_dtype   "f32", "f16" or "bf16", the type in which scales are kept
    order         int32[K] as bytes, where K was sorted before it was cut into groups: element i of a row of codes
                  belongs to column order[i] of the matrix
    """

    bits: int
    group: int = 0
    scale_dtype: ScaleDType = "f32"
    order: bytes | None = None

    @property
    def levels(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def width(self, k: int) -> int:
        """Elements of K a scale covers in a row of `k`."""
        return min(self.group, k) if self.group else k

    def groups(self, k: int) -> int:
        """Scales in a row of `k`."""
        return -(-k // self.width(k))


class Codes(NamedTuple):
    """Rows of a matrix on its grid: codes uint8[rows,K], scales fp32[rows,G], zeros int16[rows,G]."""

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.int16]


def dequantize(rows: Codes, grid: Grid) -> npt.NDArray[np.float32]:
    """w[rows,K] = (code - zero) · scale in the matrix's own column order.

    With 16-bit scales the product is exact in fp32, else it is rounded once.
    """
    k = rows.codes.shape[1]
    width = grid.width(k)
    scales = np.repeat(rows.scales, width, axis=1)[:, :k]
    zeros = np.repeat(rows.zeros, width, axis=1)[:, :k]
    with np.errstate(over="ignore"):
        values: npt.NDArray[np.float32] = (rows.codes.astype(np.int16) - zeros).astype(np.float32) * scales
    if grid.order is None:
        return values
    result = np.empty_like(values)
    result[:, order_of(grid)] = values
    return result


def order_of(grid: Grid) -> npt.NDArray[np.int32]:
    """The permutation of a grid that has one."""
    order: npt.NDArray[Any] = np.frombuffer(grid.order or b"", "<i4")
    return order
