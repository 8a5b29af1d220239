"""AWQ checkpoints of the gemm version: 4-bit codes packed along N, in AWQ's own order.

qweight  int32 [K, N/8]    a word holds 8 columns of N, the lowest bits first: columns 0, 2, 4, 6, 1, 3, 5, 7
qzeros   int32 [G, N/8]    likewise
scales   fp16 [G, N]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import shown
from dashinfer_lite.weights.gptq import checked_bits, checked_group, unpacked
from dashinfer_lite.weights.grid import Codes, Grid
from dashinfer_lite.weights.quantized import Matrix, QuantizedReader, TensorCache
from dashinfer_lite.weights.reader import WeightReader
from dashinfer_lite.weights.safetensors import Array

WORD_COLUMNS: Final = 8
COLUMN_ORDER: Final = np.array([0, 2, 4, 6, 1, 3, 5, 7])


class AwqReader(QuantizedReader):
    """Shows each matrix on its own grid."""

    suffixes = ("qweight", "qzeros", "scales")

    def __init__(self, stored: WeightReader, config: Mapping[str, Any], where: str) -> None:
        checked_bits(config, "bits" if "bits" in config else "w_bit", (4,), where)
        self._group = checked_group(config, "group_size" if "group_size" in config else "q_group_size", where)
        version = config.get("version") or "gemm"
        if not isinstance(version, str) or version.lower() != "gemm":
            raise ModelError(f"{where}: the AWQ version is {shown(version)}; supported is gemm")
        self._words = TensorCache(stored.read)
        super().__init__(stored, where)

    def matrix(self, module: str) -> Matrix:
        k, words = self.shape(f"{module}.qweight", ("i32",))
        n = words * WORD_COLUMNS
        groups = Grid(4, self._group).groups(k)
        self.expect(f"{module}.qzeros", ("i32",), (groups, words))
        scale_dtype = self.scale_dtype(f"{module}.scales", (groups, n))
        return Matrix(n, k, Grid(4, self._group if groups > 1 else 0, scale_dtype))

    def codes(self, module: str, start: int, stop: int) -> Codes:
        codes = self._columns(f"{module}.qweight", start, stop)
        zeros = self._columns(f"{module}.qzeros", start, stop).astype(np.int16)
        scales = self.floats(f"{module}.scales", self._words(f"{module}.scales")[:, start:stop])
        return Codes(*(np.ascontiguousarray(part.T) for part in (codes, scales, zeros)))

    def _columns(self, name: str, start: int, stop: int) -> Array:
        """Columns [start, stop) of a packed matrix [rows, N]."""
        first, last = start // WORD_COLUMNS, -(-stop // WORD_COLUMNS)
        packed = unpacked(self._words(name)[:, first:last], 4)
        nibbles = packed.reshape(len(packed), -1, WORD_COLUMNS)
        columns = np.empty_like(nibbles)
        columns[:, :, COLUMN_ORDER] = nibbles
        return columns.reshape(len(packed), -1)[:, start - first * WORD_COLUMNS : stop - first * WORD_COLUMNS]
