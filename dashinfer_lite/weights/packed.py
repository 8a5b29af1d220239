"""Our own quantized folders, version 1: what `dashinfer-lite quantize` writes.

    M.weight.codes   uint8 [N, K], or [N, ceil(K / 2)] with 4 bits: the even k in the low half of a byte
    M.weight.scales  fp32, fp16 or bf16 [N, G]
    M.weight.zeros   uint8 or int16 [N, G]

for each module M that `quantization_config` lists as {"bits", "group", "shape": [N, K]}; group 0 is one a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import shown
from dashinfer_lite.weights.gptq import checked_bits
from dashinfer_lite.weights.grid import Codes, Grid
from dashinfer_lite.weights.quantized import Matrix, QuantizedReader
from dashinfer_lite.weights.reader import WeightReader
from dashinfer_lite.weights.safetensors import Array

METHOD: Final = "dashinfer"
VERSION: Final = 1
MAX_SIZE: Final = 1 << 30


class PackedReader(QuantizedReader):
    """Shows each matrix on the grid that it was quantized to."""

    suffixes = ("weight.codes", "weight.scales", "weight.zeros")
    scales_suffix, zeros_suffix = suffixes[1:]

    def __init__(self, stored: WeightReader, config: Mapping[str, Any], where: str) -> None:
        version = config.get("version")
        if version != VERSION:
            raise ModelError(
                f"{where}: the folder is quantized in version {shown(version)} of the format, this program reads "
                f"version {VERSION}; quantize the model again, or upgrade"
            )
        modules = config.get("modules")
        if not isinstance(modules, dict):
            raise ModelError(f"{where}: modules is {shown(modules)}; expected an object of the quantized modules")
        self._modules = modules
        super().__init__(stored, where)
        if missing := sorted(set(modules) - set(self.grids)):
            raise self.bad(f"{missing[0]}.weight.codes", "is missing")

    def matrix(self, module: str) -> Matrix:
        n, k, grid = self._declared(module)
        codes = f"{module}.weight.codes"
        self.expect(codes, ("u8",), (n, k if grid.bits == 8 else -(-k // 2)))
        scale_dtype = self.scale_dtype(f"{module}.weight.scales", (n, grid.groups(k)))
        self.expect(f"{module}.weight.zeros", ("u8", "i16"), (n, grid.groups(k)))
        return Matrix(n, k, Grid(grid.bits, grid.group, scale_dtype))

    def codes(self, module: str, start: int, stop: int) -> Codes:
        matrix = self._matrices[module]
        name = f"{module}.weight"
        codes = self.stored.read_rows(f"{name}.codes", start, stop)
        if self.grids[module].bits == 4:
            codes = np.ascontiguousarray(_one_a_byte(codes)[:, : matrix.k])
        scales = self.floats(f"{name}.scales", self.stored.read_rows(f"{name}.scales", start, stop))
        zeros = self.stored.read_rows(f"{name}.zeros", start, stop).astype(np.int16)
        return Codes(codes, scales, zeros)

    def _declared(self, module: str) -> tuple[int, int, Grid]:
        """What the configuration says of a module: N, K and the grid, but for the type of its scales."""
        entry = self._modules.get(module)
        if not isinstance(entry, dict):
            raise self.bad(f"{module}.weight.codes", "is not described under modules in quantization_config")
        bits = checked_bits(entry, "bits", (4, 8), f"{self.where}: {module}")
        group, shape = entry.get("group"), entry.get("shape")
        if type(group) is not int or not 0 <= group <= MAX_SIZE:
            raise ModelError(f"{self.where}: {module}: group is {shown(group)}; expected 0 or a group size")
        sizes = shape if isinstance(shape, list) else []
        if len(sizes) != 2 or any(type(size) is not int or not 1 <= size <= MAX_SIZE for size in sizes):
            raise ModelError(f"{self.where}: {module}: shape is {shown(shape)}; expected [N, K]")
        return sizes[0], sizes[1], Grid(bits, group)


def _one_a_byte(octets: Array) -> Array:
    """Codes of 4 bits [rows, 2 · bytes] from two a byte: in 16-bit words, which NumPy shifts many at a time."""
    words = octets.astype("<u2")
    words |= words << 4
    words &= 0x0F0F
    return words.view(np.uint8)
