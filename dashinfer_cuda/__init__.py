"""DashInfer Lite on NVIDIA GPUs: the device "cuda".

Found by `dashinfer_lite` through the entry point `dashinfer_lite.devices`. Importing it loads nothing; without a GPU or
a driver the device says so when it is asked for.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

__all__ = ["capsule", "describe_cublaslt", "load_library"]

CAPSULE_NAME = b"dashinfer_lite.device.v1"  # a capsule keeps the address: it must live as long as the module
HERE = Path(__file__).resolve().parent
LIBRARY = "libdashinfer_cuda.so"


def capsule(library: Path | None = None) -> Any:
    """The device as a PyCapsule for `dashinfer_lite.devices.register`; OSError where the library does not load."""
    loaded = load_library(library)
    loaded.di_cuda_api.restype = ctypes.c_void_p
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(loaded.di_cuda_api(), CAPSULE_NAME, None)


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """The host library, told where the compiler lies in this environment."""
    from dashinfer_cuda._find import find_libraries

    path = path or HERE / LIBRARY
    if not path.exists():
        raise OSError(f"{path} is missing: install dashinfer-cuda (DASHINFER_DIST=cuda pip install . in a checkout)")
    loaded = ctypes.CDLL(str(path))
    loaded.di_cuda_on_notice(_NOTICE)
    for name, found in find_libraries().items():
        loaded.di_cuda_set(name.encode(), str(found).encode())
    return loaded


def describe_cublaslt(library: Path | None = None) -> tuple[bool, str]:
    """Whether cuBLASLt is found, and its path and version, or why not; opens no GPU."""
    text = ctypes.create_string_buffer(512)
    try:
        failed = load_library(library).di_cuda_cublaslt(text, ctypes.c_size_t(len(text)))
    except OSError as error:
        return False, str(error)
    return not failed, text.value.decode(errors="replace")


def _notice(text: bytes) -> None:
    """What the host library has to say although all goes on, as a warning of the logger "dashinfer_cuda"."""
    logging.getLogger(__name__).warning(text.decode(errors="replace"))


_NOTICE = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_notice)
