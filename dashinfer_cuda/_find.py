"""Where the libraries of NVIDIA's wheels lie: they are on no search path of the loader."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

# Setting of the host library → patterns below a site-packages folder, the newest first.
PATTERNS: Final = {
    "nvrtc": (
        "nvidia/cu13/lib/libnvrtc.so.13",
        "nvidia/cu12/lib/libnvrtc.so.12",
        "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
    ),
    "cublaslt": (
        "nvidia/cu13/lib/libcublasLt.so.13",
        "nvidia/cu12/lib/libcublasLt.so.12",
        "nvidia/cublas/lib/libcublasLt.so.12",
        "nvidia/cublas/lib/libcublasLt.so.11",
    ),
}
TOOLKITS: Final = {"nvrtc": "libnvrtc.so", "cublaslt": "libcublasLt.so"}


def find_libraries() -> dict[str, Path]:
    """The libraries that this environment has, by setting: wheels first, then a toolkit that CUDA_HOME names."""
    return {name: path for name in PATTERNS if (path := _find(name)) is not None}


def _find(name: str) -> Path | None:
    candidates = [Path(entry) / pattern for pattern in PATTERNS[name] for entry in sys.path if entry]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        candidates.append(Path(home) / "lib64" / TOOLKITS[name])
    return next((path for path in candidates if path.exists()), None)
