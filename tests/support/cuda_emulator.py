"""The CUDA device on the emulator: kernels, host library and stand-in driver, compiled once a session.

The host library is the production one; kernels come from the same sources as a GPU's. Compiled files are kept in the
system's temporary folder by the hash of all sources, so that a second run starts at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "cuda_kernels"
HEADERS = ROOT / "dashinfer_lite" / "include"
COMMON = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Emulator:
    """What was compiled: the host library, the stand-in driver, and the folder with kernels for some architectures."""

    host: Path
    driver: Path
    kernels: Path

    def register(self) -> None:
        """Makes "cuda" known as the device on the emulator."""
        import dashinfer_cuda

        from dashinfer_lite.devices import register

        library = dashinfer_cuda.load_library(self.host)
        library.di_cuda_set(b"driver", str(self.driver).encode())
        library.di_cuda_set(b"kernels", str(self.kernels).encode())
        register("cuda", lambda: dashinfer_cuda.capsule(self.host))

    def control(self) -> ctypes.CDLL:
        """The stand-in driver's `emu_count(name)` and `emu_fail(name, nth)`."""
        library = ctypes.CDLL(str(self.driver))
        library.emu_count.restype = ctypes.c_long
        library.emu_fail.argtypes = [ctypes.c_char_p, ctypes.c_long]
        return library


def missing() -> str:
    """Why the emulator cannot be compiled here; "" where it can."""
    if not KERNELS.is_dir():
        return "the emulator's sources are in a checkout only"
    return "" if shutil.which(_compiler()) else f"the emulator needs the compiler {_compiler()}"


@cache
def emulator(arch: int = 80) -> Emulator:
    """Compiles what is not compiled yet, with kernels for one architecture."""
    folder = Path(tempfile.gettempdir()) / f"dashinfer-emulator-{os.getuid()}" / _hash_of_sources()
    kernels = folder / f"sm_{arch}"
    (kernels / "cubin").mkdir(parents=True, exist_ok=True)
    host, driver = folder / "libdashinfer_cuda.so", folder / "libcuda_emulated.so"
    sources = [str(path) for path in sorted((KERNELS / "host").glob("*.cpp"))]
    jobs = [
        (host, [*WARNINGS, "-fno-exceptions", "-fno-rtti", f"-I{KERNELS}", f"-I{HEADERS}", *sources]),
        (driver, [*WARNINGS, str(KERNELS / "emu" / "driver.cpp")]),
    ]
    for source in sorted(KERNELS.glob("*.cu")):
        target = kernels / f"{source.stem}.so"
        emulated = ["-x", "c++", "-DDI_EMU", f"-DDI_ARCH={arch}0", f"-I{KERNELS}", "-Wno-unknown-pragmas"]
        jobs.append((target, [*WARNINGS, *emulated, str(source)]))
        image = kernels / "cubin" / f"{source.stem}.sm_{arch}.cubin"
        image.write_bytes(b"DIEMU\0" + str(target).encode() + b"\0")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, jobs))
    return Emulator(host, driver, kernels)


def _compile(job: tuple[Path, list[str]]) -> None:
    target, arguments = job
    if target.exists():
        return
    fresh = target.with_suffix(f".{os.getpid()}")
    command = [_compiler(), *COMMON, *arguments, "-o", str(fresh), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    fresh.rename(target)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _hash_of_sources() -> str:
    found = hashlib.sha256(" ".join((*COMMON, _compiler())).encode())
    files = [path for path in KERNELS.rglob("*") if path.suffix in (".cu", ".cuh", ".h", ".cpp")]
    for path in sorted([*files, *HEADERS.glob("*.h"), Path(__file__)]):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
