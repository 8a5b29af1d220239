"""The CUDA device on the emulator: kernels, host library and stand-in driver, compiled once a session.

The host library is the production one; kernels come from the same sources as a GPU's. Compiled files are kept in the
system's temporary folder by the hash of all sources, so that a second run starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "cuda_kernels"
HEADERS = ROOT / "dashinfer_lite" / "include"
COMMON = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")


@dataclass(frozen=True)
class Emulator:
    """What was compiled: the host library, the stand-ins for driver and cuBLASLt, and the folder with the kernels."""

    host: Path
    driver: Path
    kernels: Path

    def register(self) -> None:
        """Makes "cuda" known as the device on the emulator, without cuBLASLt unless a test sets it."""
        from dashinfer_lite.devices import register

        package = cuda_package()
        library = package.load_library(self.host)
        library.di_cuda_set(b"driver", str(self.driver).encode())
        library.di_cuda_set(b"kernels", str(self.kernels).encode())
        library.di_cuda_set(b"cublaslt", b"0")
        register("cuda", lambda: package.capsule(self.host))

    def set(self, name: str, value: str) -> None:
        """A setting of the host library, as the environment's DASHINFER_CUDA_<NAME> would be."""
        cuda_package().load_library(self.host).di_cuda_set(name.encode(), value.encode())

    def control(self) -> ctypes.CDLL:
        """The stand-in driver's `emu_count(name)`, `emu_fail(name, nth)` and `emu_hurry(on)`."""
        library = ctypes.CDLL(str(self.driver))
        library.emu_count.restype = ctypes.c_long
        library.emu_fail.argtypes = [ctypes.c_char_p, ctypes.c_long]
        return library


@cache
def cuda_package() -> Any:
    """`dashinfer_cuda`, from the checkout where it is not installed: the checkout is not on the path of the tests."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module("dashinfer_cuda")
    folder = ROOT / "dashinfer_cuda"
    spec = importlib.util.spec_from_file_location(
        "dashinfer_cuda", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules["dashinfer_cuda"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str:
    """Why the emulator cannot be compiled here; "" where it can."""
    if not KERNELS.is_dir():
        return "the emulator's sources are in a checkout only"
    return "" if shutil.which(_compiler()) else f"the emulator needs the compiler {_compiler()}"


def is_emulated(device: Any) -> bool:
    """Whether a GPU is the stand-in driver's."""
    return bool(device.info.detail.startswith("emulated"))


@cache
def emulator(arch: int = 80) -> Emulator:
    """Compiles what is not compiled yet, with kernels for one architecture."""
    folder = Path(tempfile.gettempdir()) / f"dashinfer-emulator-{os.getuid()}"
    host_files = sorted((KERNELS / "host").glob("*.cpp"))
    headers = [*KERNELS.glob("*.h"), *HEADERS.glob("*.h")]
    includes = [f"-I{KERNELS}", f"-I{HEADERS}"]
    host = _Target(folder, "host", host_files, [*headers, *(KERNELS / "host").glob("*.h")], includes)
    stand_ins = [KERNELS / "emu" / f"{name}.cpp" for name in ("driver", "cublaslt")]
    driver = _Target(folder, "driver", stand_ins, [KERNELS / "emu" / "stand_in.h"], [])
    device_headers = [*headers, *KERNELS.glob("*.cuh"), *(KERNELS / "emu").glob("*.h")]
    flags = ["-x", "c++", "-DDI_EMU", f"-DDI_ARCH={arch}0", f"-I{KERNELS}", "-Wno-unknown-pragmas"]
    kernels = [
        _Target(folder, f"{source.stem}.sm_{arch}", [source], device_headers, flags)
        for source in sorted(KERNELS.glob("*.cu"))
    ]
    targets = [host, driver, *kernels]
    folder.mkdir(mode=0o700, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_Target.compile, targets))
    together = folder / hashlib.sha256(" ".join(target.path.name for target in kernels).encode()).hexdigest()[:16]
    changed = Path(os.environ.get("CUDA_KERNEL_MUTANT", ""))  # see tests/cuda/test_mutants.py
    if changed.suffix:
        together = changed.parent / "images"
    (together / "cubin").mkdir(parents=True, exist_ok=True)
    for target in kernels:
        image, fresh = together / "cubin" / f"{target.name}.cubin", together / f"{target.name}.{os.getpid()}"
        if not image.exists():  # another process may be reading
            library = changed if target.name.startswith(f"{changed.stem}.") else target.path
            fresh.write_bytes(b"DIEMU\0" + str(library).encode() + b"\0")
            fresh.rename(image)
    mutant = os.environ.get("CUDA_HOST_MUTANT")
    return Emulator(Path(mutant) if mutant else host.path, driver.path, together)


@dataclass(frozen=True)
class _Target:
    """A shared library; the hash of everything that goes into it is part of its name."""

    folder: Path
    name: str
    sources: list[Path]
    depends: list[Path]
    flags: list[str]

    @property
    def command(self) -> list[str]:
        return [_compiler(), *COMMON, *self.flags, *map(str, self.sources)]

    @cached_property
    def path(self) -> Path:
        found = hashlib.sha256(" ".join(self.command).encode())
        for path in sorted([*self.sources, *self.depends]):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
        return self.folder / f"{self.name}.{found.hexdigest()[:16]}.so"

    def compile(self) -> None:
        target = self.path
        if target.exists():
            return
        fresh = target.with_suffix(f".{os.getpid()}")
        command = [*self.command, "-o", str(fresh), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        fresh.rename(target)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")
