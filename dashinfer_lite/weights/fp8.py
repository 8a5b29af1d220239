"""Checkpoints of 8-bit floats with a scale for each block: weights are multiplied out while they are read.

weight            f8_e4m3 [N, K]
weight_scale_inv  fp32 [ceil(N / b0), ceil(K / b1)]    blocks begin at multiples of b0 and b1; those at the edges
                                                       are partial
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import shown
from dashinfer_lite.weights.grid import Codes
from dashinfer_lite.weights.quantized import Matrix, QuantizedReader
from dashinfer_lite.weights.reader import WeightReader
from dashinfer_lite.weights.safetensors import Array


class Fp8Reader(QuantizedReader):
    """Shows each matrix as weight · scale of its block, rounded once to fp32."""

    suffixes = ("weight_scale_inv", "weight")

    def __init__(self, stored: WeightReader, config: Mapping[str, Any], where: str) -> None:
        block = config.get("weight_block_size")
        if not isinstance(block, list) or len(block) != 2 or any(type(b) is not int or b < 1 for b in block):
            raise ModelError(f"{where}: weight_block_size is {shown(block)}; expected two numbers such as [128, 128]")
        if config.get("fmt", "e4m3") != "e4m3":
            raise ModelError(f"{where}: fmt is {shown(config['fmt'])}; supported is e4m3")
        self._block: tuple[int, int] = (block[0], block[1])
        super().__init__(stored, where)

    def matrix(self, module: str) -> Matrix:
        n, k = self.shape(f"{module}.weight", ("f8_e4m3",))
        blocks = (-(-n // self._block[0]), -(-k // self._block[1]))
        self.scale_dtype(f"{module}.weight_scale_inv", blocks)
        return Matrix(n, k)

    def read_values(self, module: str, start: int, stop: int) -> Array:
        name, scale_name = f"{module}.weight", f"{module}.weight_scale_inv"
        rows = self.floats(name, self.stored.read_rows(name, start, stop))
        height, width = self._block
        first, last = start // height, -(-stop // height)
        scales = self.floats(scale_name, self.stored.read_rows(scale_name, first, last))
        scales = scales[np.arange(start, stop) // height - first]
        with np.errstate(over="ignore", invalid="ignore"):
            values: Array = rows * np.repeat(scales, width, axis=1)[:, : rows.shape[1]]
        return values

    def codes(self, module: str, start: int, stop: int) -> Codes:
        raise ModelError(f"{self.where}: {module} holds 8-bit floats, which stand on no grid")
