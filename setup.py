"""Builds the one extension module `dashinfer_lite._native`; with DASHINFER_DIST=cuda, dashinfer-cuda instead.

Each CPU tier is one translation unit with its own compiler flags; all of them end up in the same shared object and the
tier is chosen at run time, so that one
wheel serves every x86-64 machine. Environment: MAX_JOBS (parallel compilers), DASHINFER_DEBUG=1 (no optimization,
debug symbols), DASHINFER_SANITIZE=address, CXX; DASHINFER_DIST, and for CUDA what cuda_kernels/package.py says.
"""

from __future__ import annotations

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVXVNNI = [*AVX2, "-mavxvnni"]
AVX512VNNI = [*AVX512, "-mavx512vnni"]
AVX512BF16 = [*AVX512VNNI, "-mavx512bf16"]
AMX = [*AVX512BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
TIERS = {
    "x86_64": {
        "scalar": [],
        "avx2": AVX2,
        "avxvnni": AVXVNNI,
        "avx512": AVX512,
        "avx512vnni": AVX512VNNI,
        "avx512bf16": AVX512BF16,
        "amx": AMX,
    },
    "aarch64": {"scalar": []},
}
# Arithmetic is a specification: no contraction, no fast math, nothing that depends on the building machine.
COMMON = ["-std=c++17", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-Wall", "-Wextra"]
DEBUG = bool(os.environ.get("DASHINFER_DEBUG"))
SANITIZE = [f"-fsanitize={kind}"] if (kind := os.environ.get("DASHINFER_SANITIZE")) else []
OPTIMIZE = ["-O1", "-g"] if DEBUG or SANITIZE else ["-O3", "-fno-math-errno"]


def tiers() -> dict[str, list[str]]:
    """The tiers of this architecture and their flags; unknown architectures get the scalar one."""
    return TIERS.get(platform.machine(), {"scalar": []})


class BuildNative(build_ext):
    """Compiles every source with its own flags, several at a time, and links them into one module."""

    def build_extension(self, ext: Extension) -> None:
        runtime = sorted(str(p) for p in Path("cpu_kernels/runtime").glob("*.cpp"))
        jobs = [(source, [*COMMON, *OPTIMIZE, *SANITIZE]) for source in runtime]
        jobs += [
            (f"cpu_kernels/{tier}/table.cpp", [*COMMON, *OPTIMIZE, *SANITIZE, *flags])
            for tier, flags in tiers().items()
        ]
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        depends = [str(p) for p in Path("cpu_kernels").rglob("*.h")] + [
            "dashinfer_lite/include/dashinfer_device.h",
            "setup.py",
        ]
        newest = max(Path(p).stat().st_mtime for p in depends)

        def compile_one(job: tuple[str, list[str]]) -> str:
            source, flags = job
            target = temp / source.replace("/", "_").replace(".cpp", ".o")
            if target.exists() and target.stat().st_mtime > max(newest, Path(source).stat().st_mtime):
                return str(target)
            self.spawn([os.environ.get("CXX", "g++"), "-fPIC", *flags, "-c", source, "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "0")) or os.cpu_count() or 1) as pool:
            ext.extra_objects = list(pool.map(compile_one, jobs))
        ext.depends = ext.extra_objects  # or a changed kernel would be compiled and never linked
        super().build_extension(ext)


def setup_lite() -> None:
    """The distribution dashinfer-lite."""
    from Cython.Build import cythonize

    native = Extension(
        "dashinfer_lite._native",
        sources=["dashinfer_lite/_native.pyx"],
        include_dirs=["cpu_kernels", "dashinfer_lite/include"],
        language="c++",
        extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden", "-Wno-unused-function", *SANITIZE],
        extra_link_args=["-static-libstdc++", "-static-libgcc", "-pthread", *SANITIZE],
    )

    setup(
        packages=[
            "dashinfer_lite",
            *(
                f"dashinfer_lite.{room}"
                for room in ("graph", "weights", "devices", "engine", "text", "grammar", "tools", "cli", "server")
            ),
            *(f"dashinfer_lite.server.{room}" for room in ("protocol", "routes")),
            "dashinfer_lite.model_defs",
        ],
        package_dir={"dashinfer_lite": "dashinfer_lite", "dashinfer_lite.model_defs": "model_defs"},
        package_data={
            "dashinfer_lite": ["py.typed", "*.pyi", "include/*.h", "assets/*/*"],
            "dashinfer_lite.server": ["page/*"],
        },
        ext_modules=cythonize([native], build_dir="build/cython", language_level=3),
        cmdclass={"build_ext": BuildNative},
    )


if os.environ.get("DASHINFER_DIST") == "cuda":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # a build front end leaves it out
    from cuda_kernels.package import setup_cuda

    setup_cuda()
else:
    setup_lite()
