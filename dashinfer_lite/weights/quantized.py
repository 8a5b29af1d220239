"""Folders whose matrices are stored as integers or 8-bit floats: the reader that hides how.

A format is a subclass of `QuantizedReader`: it says which matrices it holds, and reads their rows. Everything else of
the folder shows through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import shown
from dashinfer_lite.weights.grid import Codes, Grid, ScaleDType, dequantize
from dashinfer_lite.weights.reader import WeightReader, to_float32
from dashinfer_lite.weights.safetensors import Array, TensorInfo

# A stacked q, k and v is read from nine tensors in turn, and threads may be at the next weight already.
CACHED_TENSORS: Final = 12
SCALE_DTYPES: Final[dict[str, ScaleDType]] = {"f16": "f16", "bf16": "bf16", "f32": "f32"}


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [n, k] of a module; without a grid it is known by its dequantized rows alone."""

    n: int
    k: int
    grid: Grid | None = None


class QuantizedReader(ABC):
    """A WeightReader that shows `module`.weight in fp32 where the file holds something smaller.

    stored      the reader of what the files hold
    grids       modules whose codes `read_codes` gives
    """

    # Endings of the tensors that together are one matrix; the first one marks a module.
    suffixes: tuple[str, ...]
    scales_suffix = "scales"
    zeros_suffix = "qzeros"

    def __init__(self, stored: WeightReader, where: str) -> None:
        self.stored = stored
        self.where = where
        names = stored.names()
        self._present = present = set(names)
        marker = f".{self.suffixes[0]}"
        modules = [name.removesuffix(marker) for name in names if name.endswith(marker)]
        hidden = {f"{module}.{suffix}" for module in modules for suffix in self.suffixes}
        self._others = tuple(name for name in names if name not in hidden)
        self._matrices: dict[str, Matrix] = {}
        for module in modules:
            for suffix in self.suffixes:
                if f"{module}.{suffix}" not in present and not self.optional(suffix):
                    raise self.bad(f"{module}.{suffix}", "is missing")
            self._matrices[module] = self.matrix(module)
        self.grids: Mapping[str, Grid] = {name: each.grid for name, each in self._matrices.items() if each.grid}
        self._names = (*self._others, *(f"{module}.weight" for module in self._matrices))

    def optional(self, suffix: str) -> bool:
        """Whether a matrix may lack this tensor."""
        return False

    @abstractmethod
    def matrix(self, module: str) -> Matrix:
        """Checks the tensors of a module and says what they hold; ModelError for what they cannot be."""

    @abstractmethod
    def codes(self, module: str, start: int, stop: int) -> Codes:
        """Rows [start, stop) of a matrix on its grid as the file has them, with K in the grid's order."""

    def read_codes(self, module: str, start: int, stop: int) -> Codes:
        """Rows [start, stop) of a matrix on its grid, with K in the grid's order; ModelError for a nonsensical grid."""
        rows = self.codes(module, start, stop)
        if not np.isfinite(rows.scales).all():
            raise self.bad(f"{module}.{self.scales_suffix}", "holds scales that are not finite")
        levels = self.grids[module].levels
        if rows.zeros.size and (rows.zeros.min() < 0 or rows.zeros.max() > levels):
            raise self.bad(f"{module}.{self.zeros_suffix}", f"holds zero points beyond 0 to {levels}")
        return rows

    # ---- the WeightReader ------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        return self._names

    def info(self, name: str) -> TensorInfo:
        found = self._matrices.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if found is None:
            return self.stored.info(name)
        marker = self.stored.info(f"{name.removesuffix('.weight')}.{self.suffixes[0]}")
        return replace(marker, name=name, dtype="f32", shape=(found.n, found.k), nbytes=4 * found.n * found.k)

    def read(self, name: str) -> Array:
        if not self.is_matrix(name):
            return self.stored.read(name)
        return self.read_rows(name, 0, self.info(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        if not self.is_matrix(name):
            return self.stored.read_rows(name, start, stop)
        module = name.removesuffix(".weight")
        if not 0 <= start <= stop <= self._matrices[module].n:
            raise ValueError(f"rows {start}:{stop} of tensor {shown(name)}, which has {self._matrices[module].n}")
        return self.read_values(module, start, stop)

    def read_values(self, module: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of a matrix in fp32."""
        return dequantize(self.read_codes(module, start, stop), self.grids[module])

    def close(self) -> None:
        self.stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- for formats -----------------------------------------------------------------------------------------------

    def is_matrix(self, name: str) -> bool:
        return name.endswith(".weight") and name.removesuffix(".weight") in self._matrices

    def has(self, name: str) -> bool:
        return name in self._present

    def shape(self, name: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
        """The shape of a stored matrix that must have one of these types."""
        info = self.stored.info(name)
        if info.dtype not in dtypes or len(info.shape) != 2 or 0 in info.shape:
            raise self.bad(name, f"is {info.dtype} {list(info.shape)}; expected a matrix of {' or '.join(dtypes)}")
        return info.shape[0], info.shape[1]

    def expect(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> str:
        """The type of a stored tensor that must have this shape and one of these types."""
        info = self.stored.info(name)
        if info.dtype not in dtypes or info.shape != shape:
            raise self.bad(name, f"is {info.dtype} {list(info.shape)}; expected {' or '.join(dtypes)} {list(shape)}")
        return info.dtype

    def scale_dtype(self, name: str, shape: tuple[int, ...]) -> ScaleDType:
        """The type of a matrix's scales, which must have this shape."""
        return SCALE_DTYPES[self.expect(name, tuple(SCALE_DTYPES), shape)]

    def floats(self, name: str, values: Array) -> Array:
        """Stored values of a tensor as fp32."""
        return to_float32(values, self.stored.info(name).dtype)

    def bad(self, tensor: str, what: str) -> ModelError:
        try:
            file = str(self.stored.info(tensor).file)
        except ModelError:
            file = self.where
        return ModelError(f"{file}: tensor {shown(tensor)} {what}; the quantized weights are damaged or incomplete")


class TensorCache:
    """Whole tensors for a reader that cuts them by columns; it keeps the last ones, to read each of them once."""

    def __init__(self, read: Callable[[str], Array]) -> None:
        self._read = read
        self._lock = Lock()
        self._kept: dict[str, Array] = {}

    def __call__(self, name: str) -> Array:
        with self._lock:
            found = self._kept.pop(name, None)
            if found is None:
                found = self._read(name)
            self._kept[name] = found
            if len(self._kept) > CACHED_TENSORS:
                del self._kept[next(iter(self._kept))]
            return found


def open_quantized(stored: WeightReader, config: Mapping[str, Any], where: str) -> QuantizedReader:
    """The reader for a folder's `quantization_config`; ModelError for a method that is not known.

    `where` names the file that the configuration comes from.
    """
    from dashinfer_lite.weights.awq import AwqReader
    from dashinfer_lite.weights.fp8 import Fp8Reader
    from dashinfer_lite.weights.gptq import GptqReader
    from dashinfer_lite.weights.packed import PackedReader

    method = config.get("quant_method")
    match method:
        case "gptq":
            return GptqReader(stored, config, where)
        case "awq":
            return AwqReader(stored, config, where)
        case "fp8":
            return Fp8Reader(stored, config, where)
        case "dashinfer":
            return PackedReader(stored, config, where)
        case _:
            raise ModelError(
                f"{where}: the weights are quantized by {shown(method)}; supported are gptq, awq, fp8 and dashinfer"
            )
