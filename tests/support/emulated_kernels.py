"""Launches single CUDA kernels on the emulator: `cuda_kernels/args.h` as ctypes, NumPy arrays as device memory.

Arrays that a kernel gets are copies that end at a page which nobody may touch.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Array = np.ndarray
KERNELS = Path(__file__).resolve().parents[2] / "cuda_kernels"
DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "i32": 3, "i8": 4, "u8": 5, "u4": 6}
SCALARS = {
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "int16_t": ctypes.c_int16,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
}


# ---- args.h as ctypes ------------------------------------------------------------------------------------------------


@cache
def structs() -> Mapping[str, type[ctypes.Structure]]:
    """The structs of args.h by name."""
    text = re.sub(r"//[^\n]*", "", (KERNELS / "args.h").read_text())
    found: dict[str, type[ctypes.Structure]] = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", text, re.S):
        fields: list[tuple[str, Any]] = []
        for line in filter(None, (part.strip() for part in body.split(";"))):
            declared = re.match(r"(?:const )?(\w+)\s*(.*)", line, re.S)
            assert declared, line
            for item in declared[2].split(","):
                kind: Any = SCALARS.get(declared[1]) or found.get(declared[1])
                if "*" in item:
                    kind = ctypes.c_void_p
                field = item.replace("*", "").strip()
                if count := re.fullmatch(r"(\w+)\[(\d+)\]", field):
                    field, kind = count[1], kind * int(count[2])
                assert kind is not None, line
                fields.append((field, kind))
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def make(name: str, **fields: Any) -> Any:
    """A struct of args.h: arrays give their addresses, mappings nested structs, None a null."""
    kind = structs()[name]
    types = dict(kind._fields_)  # type: ignore[arg-type]
    unknown = fields.keys() - types.keys()
    assert not unknown, f"{name} has no {unknown}"
    result = kind()
    for key, value in fields.items():
        if isinstance(value, np.ndarray):
            value = value.ctypes.data
        elif isinstance(value, Mapping):
            value = make(types[key].__name__, **value)
        elif isinstance(value, Sequence):
            value = types[key](*value)
        if value is not None:
            setattr(result, key, value)
    return result


def view(data: Array, dtype: str = "f32", first: int = 0, cols: int | None = None) -> Any:
    """A View of the columns [first, first + cols) of a two-dimensional array; 16-bit types come as their bits."""
    assert data.ndim == 2
    at = data.ctypes.data + first * data.itemsize
    return make(
        "View", data=at, stride=data.shape[1], cols=data.shape[1] - first if cols is None else cols, dtype=DTYPES[dtype]
    )


def rows(most: int, actual: Array | None = None) -> Any:
    """A Rows; `actual` is an int32 array of one element."""
    return make("Rows", most=most, actual=actual)


# ---- memory ----------------------------------------------------------------------------------------------------------


class Memory:
    """Device arrays: copies, each at the end of pages of its own, with a forbidden page behind."""

    def __init__(self) -> None:
        self._held: list[mmap.mmap] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def put(self, values: Array) -> Array:
        """A writable copy whose end, but for alignment to 16 bytes, is the end of what may be touched."""
        values = np.ascontiguousarray(values)
        size = -(-max(values.nbytes, 1) // 16) * 16
        pages = -(-size // mmap.PAGESIZE)
        area = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        guard = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
        assert self._libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        self._held.append(area)
        whole = np.frombuffer(area, np.uint8)[pages * mmap.PAGESIZE - size :][: values.nbytes]
        result: Array = whole.view(values.dtype).reshape(values.shape)
        result[...] = values
        return result

    def full(self, shape: tuple[int, ...], dtype: Any, value: Any) -> Array:
        """An array of one value."""
        return self.put(np.full(shape, value, dtype))


# ---- launching -----------------------------------------------------------------------------------------------------


class Kernels:
    """The kernels of some emulator libraries for an architecture; what these lack comes from `others`."""

    def __init__(self, libraries: Iterable[Path], arch: int = 80, others: Kernels | None = None) -> None:
        self.arch = arch
        self._libraries: list[ctypes.CDLL] = [ctypes.CDLL(str(path)) for path in libraries]
        self._libraries += others._libraries if others else []

    @classmethod
    def of_images(cls, folder: Path, arch: int) -> Kernels:
        """The kernels of the emulator's images, which name their libraries."""
        images = sorted(folder.glob("*.cubin"))
        return cls([Path(image.read_bytes().split(b"\0")[1].decode()) for image in images], arch)

    def __contains__(self, kernel: str) -> bool:
        return any(hasattr(library, f"emu_run_{kernel}") for library in self._libraries)

    def run(self, kernel: str, grid: tuple[int, ...], block: int, args: ctypes.Structure, shared: int = 0) -> None:
        """Launches over `grid` (x, or x and y) with a struct of args.h."""
        if self.arch < 80 and kernel not in self:
            pytest.skip(f"SM{self.arch} has no {kernel}")
        library = next(each for each in self._libraries if hasattr(each, f"emu_run_{kernel}"))
        shape = (ctypes.c_uint * 6)(grid[0], grid[1] if len(grid) > 1 else 1, 1, block, 1, 1)
        sizes = (ctypes.c_int * 8)()
        assert getattr(library, f"emu_sizes_{kernel}")(sizes) == 1 and sizes[0] == ctypes.sizeof(args)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        getattr(library, f"emu_run_{kernel}")(shape, ctypes.c_size_t(shared), parameters)

    def launch(self, name: str, args: ctypes.Structure, *more: Any) -> str:
        """Launches as `launch_<name>` of launch.h says; returns the kernel that it chose."""
        found = launch_of(name, args, *more)
        grid = (found.grid_x, found.grid_y)
        self.run(found.kernel.decode(), grid, found.block, args, found.shared)
        kernel: str = found.kernel.decode()
        return kernel


# ---- launch.h ------------------------------------------------------------------------------------------------------


class Launch(ctypes.Structure):
    """How a kernel is launched; the struct of launch.h."""

    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid_x", ctypes.c_int32),
        ("grid_y", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("shared", ctypes.c_int32),
    ]


class Chip(ctypes.Structure):
    """A GPU; the struct of launch.h."""

    _fields_ = [("arch", ctypes.c_int32), ("processors", ctypes.c_int32), ("shared_bytes", ctypes.c_int32)]


SHARED_KIB = {60: 48, 70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227}


def chip(arch: int) -> Chip:
    """A GPU of an architecture; 60 is one without tensor cores, whose kernels every chip has."""
    return Chip(arch, 16, SHARED_KIB[arch] * 1024)


def launch_of(name: str, args: ctypes.Structure, *more: Any) -> Launch:
    """What `launch_<name>` of launch.h says for a struct of args.h; `more` are a Chip or a bool where it takes one."""
    result = Launch()
    function = getattr(_launches(), f"launch_{name}")
    function(ctypes.byref(args), *(ctypes.byref(m) if isinstance(m, Chip) else m for m in more), ctypes.byref(result))
    return result


@cache
def _launches() -> ctypes.CDLL:
    """launch.h as a library: each function with pointers in place of references, and the result last."""
    text = (KERNELS / "launch.h").read_text()
    source = ['#include "launch.h"', "using namespace di;"]
    for name, declared in re.findall(r"inline Launch launch_(\w+)\(([^)]*)\)", text):
        kinds = [re.sub(r"\s*&.*|(?<=bool).*", "", part).strip() for part in declared.split(",")]
        takes = ", ".join(f"{kind}{'' if kind == 'bool' else '*'} p{i}" for i, kind in enumerate(kinds))
        gives = ", ".join(f"{'' if kind == 'bool' else '*'}p{i}" for i, kind in enumerate(kinds))
        source.append(f'extern "C" void launch_{name}({takes}, Launch* result) {{ *result = launch_{name}({gives}); }}')
    folder = Path(tempfile.mkdtemp(prefix="dashinfer-launches-"))
    (folder / "launches.cpp").write_text("\n".join(source))
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{KERNELS}", str(folder / "launches.cpp"), "-o"]
    subprocess.run([*command, str(folder / "launches.so")], check=True)
    library = ctypes.CDLL(str(folder / "launches.so"))
    shutil.rmtree(folder)
    return library
