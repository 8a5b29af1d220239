"""GPTQ checkpoints: 4 or 8 bit codes packed along K, any group size, act-order, zero points of version 1 and 2.

qweight  int32 [K·bits/32, N]     a word holds consecutive k, the lowest bits first
qzeros   int32 [G, N·bits/32]     likewise along N; version 1 stores them minus 1
scales   fp16 [G, N]
g_idx    int32 [K]                the group of each k; may be missing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import shown
from dashinfer_lite.weights.grid import Codes, Grid
from dashinfer_lite.weights.quantized import Matrix, QuantizedReader, TensorCache
from dashinfer_lite.weights.reader import WeightReader
from dashinfer_lite.weights.safetensors import Array

WORD_BITS: Final = 32


class GptqReader(QuantizedReader):
    """Shows each matrix on its own grid; with act-order, K is sorted by group."""

    suffixes = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, stored: WeightReader, config: Mapping[str, Any], where: str) -> None:
        self._bits = checked_bits(config, "bits", (4, 8), where)
        self._group = checked_group(config, "group_size", where)
        layout = config.get("checkpoint_format") or "gptq"
        if layout not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
            raise ModelError(f"{where}: checkpoint_format is {shown(layout)}; supported are gptq and gptq_v2")
        self._zero_offset = 1 if layout == "gptq" else 0
        self._words = TensorCache(stored.read)
        super().__init__(stored, where)

    def optional(self, suffix: str) -> bool:
        return suffix == "g_idx"

    def matrix(self, module: str) -> Matrix:
        bits = self._bits
        words, n = self.shape(f"{module}.qweight", ("i32",))
        k = words * WORD_BITS // bits
        plain = Grid(bits, self._group)
        groups = plain.groups(k)
        self.expect(f"{module}.qzeros", ("i32",), (groups, -(-n * bits // WORD_BITS)))
        scale_dtype = self.scale_dtype(f"{module}.scales", (groups, n))
        order = None
        if self.has(f"{module}.g_idx"):
            self.expect(f"{module}.g_idx", ("i32", "i64"), (k,))
            order = self._order(f"{module}.g_idx", plain.width(k))
        return Matrix(n, k, Grid(bits, self._group if groups > 1 else 0, scale_dtype, order))

    def codes(self, module: str, start: int, stop: int) -> Codes:
        grid = self.grids[module]
        words = self._words(f"{module}.qweight")[:, start:stop]
        codes = unpacked(words.T, grid.bits)
        if grid.order is not None:
            codes = codes[:, np.frombuffer(grid.order, "<i4")]
        n = self._matrices[module].n
        zeros = unpacked(self._words(f"{module}.qzeros"), grid.bits)[:, :n][:, start:stop].astype(np.int16)
        # A zero point of 0 is stored by version 1 as -1, which is all bits.
        zeros = (zeros + self._zero_offset) & grid.levels
        scales = self.floats(f"{module}.scales", self._words(f"{module}.scales")[:, start:stop])
        return Codes(np.ascontiguousarray(codes), *(np.ascontiguousarray(part.T) for part in (scales, zeros)))

    def _order(self, name: str, width: int) -> bytes | None:
        """The permutation that makes groups contiguous; None where they are already."""
        group_of = self.stored.read(name)
        k = len(group_of)
        order = np.argsort(group_of, kind="stable")
        if not np.array_equal(group_of[order], np.arange(k) // width):
            raise self.bad(name, f"does not put {width} columns into each group")
        return None if np.array_equal(order, np.arange(k)) else order.astype("<i4").tobytes()


def unpacked(words: Array, bits: int) -> Array:
    """Codes uint8[rows, columns · 32 / bits] of int32 words[rows, columns], the lowest bits first."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    result = np.empty((len(octets), 2 * octets.shape[1]), np.uint8)
    result[:, ::2] = octets & 15
    result[:, 1::2] = octets >> 4
    return result


def checked_bits(config: Mapping[str, Any], key: str, known: tuple[int, ...], where: str) -> int:
    """The width of the codes."""
    bits = config.get(key)
    if type(bits) is not int or bits not in known:
        raise ModelError(f"{where}: {key} is {shown(bits)}; supported are {' and '.join(map(str, known))} bits")
    return bits


def checked_group(config: Mapping[str, Any], key: str, where: str) -> int:
    """The elements of K that a scale covers; 0 for the file's -1, all of them."""
    group = config.get(key, -1)
    if type(group) is not int or (group != -1 and not 1 <= group <= 1 << 20):
        raise ModelError(f"{where}: {key} is {shown(group)}; expected a positive number, or -1 for one a channel")
    return max(group, 0)
