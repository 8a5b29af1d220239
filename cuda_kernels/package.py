"""The distribution dashinfer-cuda: a host library in plain C++, cubins, and the kernels' sources for newer GPUs.

Nothing of CUDA is needed to install it, and the wheel serves every Python. Environment: DASHINFER_CUDA_AOT (auto,
require, nvcc, off), DASHINFER_CUDA_ARCHS ("sm_80 sm_90a"), DASHINFER_CUDA_NVRTC, DASHINFER_NVCC, CXX, MAX_JOBS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

from cuda_kernels import compile as kernels

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD: Final = "build/cuda"  # apart from dashinfer-lite's, or one's files would end up in the other's wheel
HOST_FLAGS: Final = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti")
HOST_LINKS: Final = ("-ldl", "-pthread", "-static-libstdc++", "-static-libgcc")


def setup_cuda() -> None:
    """Declares the distribution; its version is dashinfer-lite's, which it asks for exactly."""
    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    setup(
        distclass=CudaDistribution,
        name="dashinfer-cuda",
        version=version,
        description="DashInfer Lite on NVIDIA GPUs",
        license="Apache-2.0",
        python_requires=project["requires-python"],
        packages=["dashinfer_cuda"],
        package_data={"dashinfer_cuda": ["py.typed"]},
        setup_requires=_compiler_wheels(),
        install_requires=[f"dashinfer-lite=={version}"],
        extras_require={
            "cu12": ["nvidia-cublas-cu12>=12.4", "nvidia-cuda-nvrtc-cu12>=12.4"],
            "cu13": ["nvidia-cublas>=13,<14", "nvidia-cuda-nvrtc>=13,<14"],
        },
        entry_points={"dashinfer_lite.devices": ["cuda = dashinfer_cuda:capsule"]},
        cmdclass={"build_py": BuildCuda, "bdist_wheel": AnyPythonWheel},
        options={"build": {"build_base": BUILD}, "egg_info": {"egg_base": BUILD}},
        zip_safe=False,
    )


class CudaDistribution(Distribution):
    """Not the project that pyproject.toml describes, and not of Python alone."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        """Leaves pyproject.toml to the other distribution."""

    def has_ext_modules(self) -> bool:
        return True


class AnyPythonWheel(bdist_wheel):
    """Of one platform, but of no Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class BuildCuda(build_py):
    """Python files, then the host library, the sources and the cubins beside them."""

    def run(self) -> None:
        super().run()
        package = Path(self.build_lib) / "dashinfer_cuda"
        for folder in ("cubin", "src"):
            shutil.rmtree(package / folder, ignore_errors=True)
            (package / folder).mkdir(parents=True)
        build_host(package / "libdashinfer_cuda.so")
        for pattern in ("*.cu", "*.cuh", "args.h"):
            for source in kernels.HERE.glob(pattern):
                shutil.copy(source, package / "src")
        compiler = kernels.find_compiler(os.environ.get("DASHINFER_CUDA_AOT", "auto"))
        if compiler is None:
            self.warn("no CUDA compiler: kernels will be compiled on the machine with the GPU")
            return
        wanted = tuple(os.environ.get("DASHINFER_CUDA_ARCHS", " ".join(kernels.ARCHITECTURES)).split())
        made = kernels.compile_all(compiler, package / "cubin", ROOT / BUILD / "cubins", wanted)
        for architecture in set(wanted) - set(made):
            self.warn(f"{compiler.name} does not know {architecture}: left out")


def build_host(target: Path) -> None:
    """Compiles the host library; it needs no header of CUDA's."""
    sources = sorted(str(path) for path in (kernels.HERE / "host").glob("*.cpp"))
    includes = [f"-I{kernels.HERE}", f"-I{ROOT / 'dashinfer_lite' / 'include'}"]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *HOST_FLAGS, *includes, *sources, "-o", str(target), *HOST_LINKS], check=True)


def _compiler_wheels() -> list[str]:
    needed = os.environ.get("DASHINFER_CUDA_AOT", "auto") in ("auto", "require") and not os.environ.get(
        "DASHINFER_CUDA_NVRTC"
    )
    return (
        ["nvidia-cuda-nvrtc-cu12==12.9.86; sys_platform == 'linux' and platform_machine == 'x86_64'"] if needed else []
    )
