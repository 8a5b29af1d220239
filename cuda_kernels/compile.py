"""Compiles the kernels ahead of time: sources → one cubin a module and architecture.

NVRTC from NVIDIA's wheel needs no toolkit, no driver and no GPU, and is the one compiler of the package index that
knows every architecture from sm_70 on; a toolkit's nvcc is the fallback. Used by setup.py, and by the tests of resource
use.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol

HERE: Final = Path(__file__).resolve().parent
ARCHITECTURES: Final = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90a")
# The same as in host/nvrtc.cpp: fused operations are written, denormals are zeros.
OPTIONS: Final = ("-std=c++17", "-fmad=false", "-ftz=true")
WHEEL_LIBRARIES: Final = (
    "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
    "nvidia/cu12/lib/libnvrtc.so.12",
    "nvidia/cu13/lib/libnvrtc.so.13",
)


class CompileError(Exception):
    """A kernel does not compile, or a compiler that was asked for is missing."""


class Compiler(Protocol):
    """Turns one source into a cubin and the assembler's log of resources."""

    name: str

    def knows(self, architecture: str) -> bool: ...

    def compile(self, source: Path, architecture: str) -> tuple[bytes, str]: ...


def find_compiler(mode: str = "auto") -> Compiler | None:
    """The compiler to use: `mode` is "auto" (NVRTC, else nvcc, else none), "require", "nvcc" or "off"."""
    if mode not in ("auto", "require", "nvcc", "off"):
        raise CompileError(f"DASHINFER_CUDA_AOT={mode!r}: expected auto, require, nvcc or off")
    found: Compiler | None = None
    if mode in ("auto", "require") and (library := find_nvrtc()):
        found = Nvrtc(str(library))
    elif mode != "off" and (program := find_nvcc()):
        found = Nvcc(str(program))
    if found is None and mode in ("require", "nvcc"):
        raise CompileError(
            f"DASHINFER_CUDA_AOT={mode}, but the compiler was not found: pip install nvidia-cuda-nvrtc-cu12"
        )
    return found


def find_nvrtc() -> Path | None:
    """What DASHINFER_CUDA_NVRTC names, else NVIDIA's wheels, else a toolkit's library."""
    if named := os.environ.get("DASHINFER_CUDA_NVRTC"):
        return Path(named)
    candidates = [Path(entry) / name for name in WHEEL_LIBRARIES for entry in sys.path if entry]
    candidates += [home / "lib64" / "libnvrtc.so" for home in _toolkits()]
    return next((path for path in candidates if path.exists()), None)


def find_nvcc() -> Path | None:
    """What DASHINFER_NVCC names, else a toolkit's, else the one on the path."""
    if named := os.environ.get("DASHINFER_NVCC"):
        return Path(named)
    found = next((path for home in _toolkits() if (path := home / "bin" / "nvcc").exists()), None)
    return found or (Path(on_path) if (on_path := shutil.which("nvcc")) else None)


def _toolkits() -> list[Path]:
    return [Path(home) for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]


@dataclass(frozen=True)
class Nvrtc:
    """NVIDIA's run-time compiler library. Only the path travels between processes."""

    path: str

    @property
    def name(self) -> str:
        """For example "nvrtc 12.9"."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"nvrtc {major.value}.{minor.value}"

    @property
    def _library(self) -> ctypes.CDLL:
        return _nvrtc_library(self.path)

    def knows(self, architecture: str) -> bool:
        """Whether it compiles for an architecture."""
        count = ctypes.c_int()
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._library.nvrtcGetSupportedArchs(numbers)
        return _number(architecture) in list(numbers)

    def compile(self, source: Path, architecture: str) -> tuple[bytes, str]:
        """The cubin and the log; CompileError with the compiler's words."""
        library, program = self._library, ctypes.c_void_p()
        options = [f"--gpu-architecture={architecture}", f"-I{source.parent}", *OPTIONS, "--ptxas-options=-v"]
        encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
        failed = library.nvrtcCompileProgram(program, len(options), encoded)
        log = self._get(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        cubin = b"" if failed else self._get(program, "CUBIN")
        library.nvrtcDestroyProgram(ctypes.byref(program))
        if failed:
            raise CompileError(f"{source.name} does not compile for {architecture}:\n{log}")
        return cubin, log

    def _get(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw


@cache
def _nvrtc_library(path: str) -> ctypes.CDLL:
    # libnvrtc looks for its builtins on the loader's path only; once loaded they are found.
    for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(path)
    library.nvrtcCreateProgram.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
    ]
    return library


@dataclass(frozen=True)
class Nvcc:
    """A toolkit's compiler driver."""

    path: str

    @property
    def name(self) -> str:
        return f"nvcc {self.path}"

    def knows(self, architecture: str) -> bool:
        """Whether it compiles for an architecture."""
        listed = subprocess.run([self.path, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
        return _number(architecture) in {_number(word) for word in listed.split()}

    def compile(self, source: Path, architecture: str) -> tuple[bytes, str]:
        """The cubin and the log; CompileError with the compiler's words."""
        target = source.parent / f".{source.stem}.{architecture}.{os.getpid()}.cubin"
        code = f"arch=compute_{architecture[3:]},code={architecture}"
        command = [self.path, "-cubin", *OPTIONS, "-Xptxas", "-v", "-gencode", code, "-o", str(target), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CompileError(f"{source.name} does not compile for {architecture}:\n{done.stderr}")
            return target.read_bytes(), done.stderr
        finally:
            target.unlink(missing_ok=True)


def compile_all(
    compiler: Compiler, out: Path, store: Path, architectures: tuple[str, ...] = ARCHITECTURES
) -> list[str]:
    """Fills `out` with <module>.<architecture>.cubin, from `store` where nothing changed; returns the architectures."""
    known = [architecture for architecture in architectures if compiler.knows(architecture)]
    out.mkdir(parents=True, exist_ok=True)
    store.mkdir(parents=True, exist_ok=True)
    jobs = [(compiler, source, architecture, store) for source in sorted(HERE.glob("*.cu")) for architecture in known]
    with ProcessPoolExecutor(int(os.environ.get("MAX_JOBS", "0")) or os.cpu_count() or 1) as pool:
        for (_, source, architecture, _), stored in zip(jobs, pool.map(_compile_one, jobs), strict=True):
            shutil.copyfile(stored, out / f"{source.stem}.{architecture}.cubin")
    manifest = {
        "compiler": compiler.name,
        "architectures": known,
        "modules": sorted(path.stem for path in HERE.glob("*.cu")),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return known


def _compile_one(job: tuple[Compiler, Path, str, Path]) -> Path:
    compiler, source, architecture, store = job
    cubin, log = store / f"{_key(compiler, source, architecture)}.cubin", ""
    if not cubin.exists():
        code, log = compiler.compile(source, architecture)
        fresh = cubin.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(code)
        cubin.with_suffix(".log").write_text(log)
        fresh.rename(cubin)
    return cubin


def _key(compiler: Compiler, source: Path, architecture: str) -> str:
    """Of everything that a cubin depends on: its source, what that includes, options and compiler."""
    found = hashlib.sha256(" ".join((compiler.name, architecture, *OPTIONS)).encode())
    for path in _closure(source):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{source.stem}.{architecture}.{found.hexdigest()[:16]}"


def _closure(source: Path) -> list[Path]:
    seen: dict[Path, None] = {source: None}
    for path in (todo := [source]):
        for name in re.findall(r'#include "([^"]+)"', path.read_text()):
            included = source.parent / name
            if included.exists() and included not in seen:
                seen[included] = None
                todo.append(included)
    return list(seen)


def _number(architecture: str) -> int:
    return int("".join(c for c in architecture if c.isdigit()))
