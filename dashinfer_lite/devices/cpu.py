"""The device "cpu": picks threads and tier from arguments, environment and machine."""

from __future__ import annotations

import os

from dashinfer_lite.devices.native import NativeDevice
from dashinfer_lite.errors import DeviceError


def open_cpu(index: str = "", *, threads: int | None = None, isa: str | None = None) -> NativeDevice:
    """Open the CPU.

    `threads` defaults to DASHINFER_NUM_THREADS, else to the physical cores within the process's affinity and cgroup
    quota. `isa` (or DASHINFER_ISA) names a
    tier: "amx", "avx512", "avx2" or "scalar"; one that the machine lacks is refused.
    """
    from dashinfer_lite import _native

    if index:
        raise DeviceError(f"the CPU has no number: use device='cpu' instead of 'cpu:{index}'")
    if threads is None:
        threads = _threads_from_environment()
    elif isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise DeviceError(f"threads={threads!r}: expected a number from 1 to 1024, or None for the machine's cores")
    return NativeDevice(_native.cpu_capsule(), threads=threads, isa=isa or os.environ.get("DASHINFER_ISA") or None)


def _threads_from_environment() -> int:
    text = os.environ.get("DASHINFER_NUM_THREADS", "")
    if not text:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise DeviceError(f"DASHINFER_NUM_THREADS={text!r}: expected a number from 1 to 1024")
    return int(text)
