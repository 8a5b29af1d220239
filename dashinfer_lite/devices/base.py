"""What the engine asks of a device, in Python.

Native devices (the CPU, CUDA) implement `include/dashinfer_device.h` and are wrapped by `devices/native.py`; the NumPy
reference implements these
protocols directly. One engine step is one `submit`; results lie in the step's output arrays once `wait` has returned
for its ticket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from dashinfer_lite.devices.step import Step
    from dashinfer_lite.graph.program import DType, Program
    from dashinfer_lite.weights.grid import Codes


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """An open device. Lowering pads to `col_align` and `head_align`; `async_depth` steps may be in flight at once."""

    name: str
    tier: str
    detail: str
    threads: int
    col_align: int
    head_align: int
    async_depth: int
    unified_memory: bool
    memory_total: int
    memory_free: int


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Whether a device can be used on this machine, and why not."""

    name: str
    usable: bool
    reason: str


@runtime_checkable
class Device(Protocol):
    """An open device. `close` frees what it holds; programs must be closed first."""

    info: DeviceInfo

    def create(self, program: Program) -> Executable:
        """Build an executable; raises DeviceError with the reason when the device cannot run the program."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Executable(Protocol):
    """A program on a device, with its weights, KV pool and last-token state."""

    info: DeviceInfo

    def write_rows(
        self,
        weight: int,
        row0: int,
        sources: Sequence[np.ndarray],
        dtype: DType,
        part_index: np.ndarray,
        row_index: np.ndarray,
    ) -> None:
        """Fill rows [row0, row0 + len(part_index)) of a linear or table weight.

        Row i comes from `sources[part_index[i]][row_index[i]]`, a 2-D C-contiguous array of raw elements (uint16 for
        bf16) of `dtype`; part -1 is a row of zeros.
        Thread-safe for disjoint row ranges.
        """
        ...

    def write_codes(
        self, weight: int, row0: int, sources: Sequence[Codes], part_index: np.ndarray, row_index: np.ndarray
    ) -> None:
        """Fill rows of a quantized weight whose grid exists already, like `write_rows`.

        `write_rows` itself quantizes, with an error for values that are not finite.
        """
        ...

    def write_vector(self, weight: int, values: np.ndarray) -> None:
        """Fill a vector weight with fp32 values (already padded)."""
        ...

    def submit(self, step: Step) -> int:
        """Start one step and return its ticket. The step's arrays stay untouched until `wait(ticket)`."""
        ...

    def wait(self, ticket: int) -> None:
        """Block until the step is done; raises DeviceError when it failed as a whole."""
        ...

    def kv_read(self, blocks: Sequence[int]) -> list[bytes]:
        """Copy blocks to host memory."""
        ...

    def kv_write(self, blocks: Sequence[int], data: Sequence[bytes]) -> None: ...

    def stats(self) -> dict[str, int]:
        """weight_bytes, kv_bytes, arena_bytes, last_step_ns and per-op nanoseconds while profiling."""
        ...

    def close(self) -> None: ...
