"""Reads one .safetensors file: 8 bytes header length, a JSON header, the tensors' bytes.

Source of the format and its limits: the safetensors README, section "Format".
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import RegularFile, parse_json_object, shown

Array = npt.NDArray[Any]

MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMENSIONS: Final = 16

# The file's name of a type → our name, and the NumPy type its elements are returned in.
# NumPy has no bfloat16 and no 8-bit float: these come as their bits, see reader.to_float32.
DTYPES: Final[dict[str, tuple[str, str]]] = {
    "F64": ("f64", "<f8"),
    "F32": ("f32", "<f4"),
    "F16": ("f16", "<f2"),
    "BF16": ("bf16", "<u2"),
    "F8_E4M3": ("f8_e4m3", "|u1"),
    "F8_E5M2": ("f8_e5m2", "|u1"),
    "I64": ("i64", "<i8"),
    "I32": ("i32", "<i4"),
    "I16": ("i16", "<i2"),
    "I8": ("i8", "|i1"),
    "U64": ("u64", "<u8"),
    "U32": ("u32", "<u4"),
    "U16": ("u16", "<u2"),
    "U8": ("u8", "|u1"),
    "BOOL": ("bool", "|b1"),
}
STORAGE: Final[dict[str, str]] = dict(DTYPES.values())


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: its bytes are [start, start + nbytes) of the file, row-major and little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


class SafetensorsFile:
    """One .safetensors file, fully checked when it is opened.

    `tensors` maps names to TensorInfo in the order of their bytes, `metadata` holds the file's own strings.
    Reads may come from any thread. Every fault of the file is a ModelError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        file = RegularFile(self.path)
        try:
            self._check(file)
        except BaseException:
            file.close()
            raise
        self._file: RegularFile | None = file

    def read(self, name: str, out: Array | None = None) -> Array:
        """Returns a whole tensor, in `out` if given. bf16 comes as uint16 and 8-bit floats as uint8: their bits."""
        info = self._info(name)
        return self._read(info, info.start, info.shape, out)

    def read_rows(self, name: str, start: int, stop: int, out: Array | None = None) -> Array:
        """Returns x[start:stop] of a tensor x[rows, ...] and reads only these bytes; else like `read`.

        Raises ValueError unless 0 <= start <= stop <= rows.
        """
        info = self._info(name)
        if not info.shape:
            raise ModelError(f"{self.path}: tensor {shown(name)} is a single number and has no rows")
        rows = info.shape[0]
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start}:{stop} of tensor {shown(name)}, which has {rows}")
        row_bytes = info.nbytes // rows if rows else 0
        return self._read(info, info.start + start * row_bytes, (stop - start, *info.shape[1:]), out)

    def close(self) -> None:
        """Lets go of the file; reads already under way in other threads still end well."""
        self._file = None

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelError(f"{self.path}: holds no tensor {shown(name)}") from None

    def _read(self, info: TensorInfo, offset: int, shape: tuple[int, ...], out: Array | None) -> Array:
        file = self._file
        if file is None:
            raise ValueError(f"{self.path}: is closed")
        dtype = np.dtype(STORAGE[info.dtype])
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(
                f"out is {out.dtype}{list(out.shape)}, tensor {shown(info.name)} needs a writable, C-contiguous "
                f"{dtype}{list(shape)}"
            )
        data = out.reshape(-1).view(np.uint8)
        file.read_into(data.data, offset)
        if info.dtype == "bool":
            np.not_equal(data, 0, out=out.reshape(-1))  # a bool that is neither 0 nor 1 has no meaning in NumPy
        return out

    def _check(self, file: RegularFile) -> None:
        header, data_start = _header(file)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ModelError(f"{self.path}: __metadata__ is not an object of strings")
        self.metadata = metadata
        tensors = [self._entry(name, entry, data_start) for name, entry in header.items()]
        tensors.sort(key=lambda info: (info.start, info.nbytes))
        self.tensors = {info.name: info for info in tensors}

        end = data_start
        for info in tensors:
            if info.start < end:
                raise self._bad(info.name, f"begins {end - info.start} bytes before the previous one ends")
            if info.start > end:
                raise self._bad(info.name, f"leaves {info.start - end} bytes unused before it")
            end += info.nbytes
            if end > file.size:
                raise ModelError(
                    f"{self.path}: tensor {shown(info.name)} ends at byte {end}, the file at {file.size}; "
                    "it is cut short, copy or download it again"
                )
        if end < file.size:
            raise ModelError(f"{self.path}: {file.size - end} bytes follow the last tensor; the file is damaged")

    def _entry(self, name: str, entry: object, data_start: int) -> TensorInfo:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad(name, f"is described by {shown(entry)}, expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._bad(name, f"has dtype {shown(dtype)}, known are {', '.join(DTYPES)}")
        if not _natural_numbers(shape) or len(shape) > MAX_DIMENSIONS:
            raise self._bad(name, f"has shape {shown(shape)}, expected at most {MAX_DIMENSIONS} non-negative integers")
        if not _natural_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._bad(name, f"has data_offsets {shown(offsets)}, expected [begin, end]")
        own_dtype, storage = DTYPES[dtype]
        itemsize = np.dtype(storage).itemsize
        # Zeros are left out of the bound: an empty array of 2⁶² columns is more than NumPy can describe.
        if math.prod(max(size, 1) for size in shape) * itemsize >= 2**63:
            raise self._bad(name, f"has shape {shown(shape)}, which no memory holds")
        nbytes = math.prod(shape) * itemsize
        if offsets[1] - offsets[0] != nbytes:
            raise self._bad(name, f"has {offsets[1] - offsets[0]} bytes, {dtype} {shown(shape)} needs {nbytes}")
        return TensorInfo(name, own_dtype, tuple(shape), self.path, data_start + offsets[0], nbytes)

    def _bad(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.path}: tensor {shown(name)} {what}; the file is damaged or of an unknown kind")


def _header(file: RegularFile) -> tuple[dict[str, Any], int]:
    """Returns the parsed header and the byte at which the tensors begin."""
    if file.size < 8:
        raise ModelError(f"{file.path}: has {file.size} bytes and is no safetensors file; download it again")
    prefix = file.read(0, 8)
    if prefix == b"version ":
        raise ModelError(f"{file.path}: is a Git LFS pointer, not the weights; run `git lfs pull` there")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise ModelError(
            f"{file.path}: announces a header of {length} bytes, the format allows {MAX_HEADER_BYTES}; "
            "this is no safetensors file"
        )
    if length > file.size - 8:
        raise ModelError(
            f"{file.path}: announces a header of {length} bytes but has only {file.size}; "
            "it is cut short, copy or download it again"
        )
    data = file.read(8, length)
    if not data.startswith(b"{"):
        raise ModelError(f"{file.path}: its header is not a JSON object; this is no safetensors file")
    return parse_json_object(data, f"{file.path} (header)", unique_keys=True), 8 + length


def _natural_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
