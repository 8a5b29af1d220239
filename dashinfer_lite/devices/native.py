"""A device of the C ABI as the engine sees it: encoding, addresses, and errors with the device's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dashinfer_lite import _native
from dashinfer_lite.devices.base import DeviceInfo
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.encode import DTYPES, encode
from dashinfer_lite.graph.ops import OPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.devices.step import Step
    from dashinfer_lite.graph.program import DType, Program
    from dashinfer_lite.weights.grid import Codes


class NativeDevice:
    """An open device behind a PyCapsule; see include/dashinfer_device.h."""

    def __init__(self, capsule: Any, *, threads: int = 0, isa: str | None = None) -> None:
        try:
            self._handle = _native.DeviceHandle(capsule, threads, isa)
        except _native.NativeError as error:
            raise DeviceError(str(error)) from None
        self.info = DeviceInfo(**self._handle.info())

    def create(self, program: Program) -> NativeExecutable:
        """Build the program on the device; DeviceError says what it cannot run."""
        return NativeExecutable(self._handle, self.info, program)

    def close(self) -> None:
        """Stop the device's threads; executables must be closed first."""
        self._handle.close()


class NativeExecutable:
    """A program with its weights and KV pool on a native device."""

    def __init__(self, handle: _native.DeviceHandle, info: DeviceInfo, program: Program) -> None:
        self.info = info
        self._program = program
        code, kv, limits = encode(program), program.kv, program.limits
        try:
            self._handle = _native.ProgramHandle(
                handle,
                code.slots,
                code.instrs,
                code.weights,
                code.n_body,
                code.n_tail,
                (kv.layers, kv.heads, kv.head_size, kv.block_tokens, kv.blocks, kv.host_blocks),
                DTYPES[kv.dtype],
                program.arena_bytes,
                limits.max_tokens,
                limits.tail_rows,
                limits.max_seqs,
                limits.max_logprobs,
                limits.experts_per_token,
            )
        except _native.NativeError as error:
            raise DeviceError(f"{info.name} cannot run this program: {error}") from None

    def write_rows(
        self,
        weight: int,
        row0: int,
        sources: Sequence[np.ndarray],
        dtype: DType,
        part_index: np.ndarray,
        row_index: np.ndarray,
    ) -> None:
        """Fill padded rows from source arrays; see `devices.base.Executable`."""
        k = self._program.weights[weight].k
        for source in sources:
            if source.ndim != 2 or source.shape[1] != k or source.strides[1] != source.itemsize:
                raise DeviceError(
                    f"weight {weight}: source rows must be {k} contiguous elements, got shape {source.shape}"
                )
        addresses = _addresses(sources, part_index, row_index)
        self._call(self._handle.write_rows, weight, row0, addresses, DTYPES[dtype])

    def write_codes(
        self, weight: int, row0: int, sources: Sequence[Codes], part_index: np.ndarray, row_index: np.ndarray
    ) -> None:
        """Fill padded rows of a quantized weight from codes, scales and zero points; see `devices.base.Executable`."""
        k = self._program.weights[weight].k
        for source in sources:
            if source.codes.shape[1:] != (k,) or source.scales.shape != source.zeros.shape:
                raise DeviceError(f"weight {weight}: codes of shape {source.codes.shape} for {k} columns")
        arrays = [[np.ascontiguousarray(part) for part in source] for source in sources]
        wanted = (np.uint8, np.float32, np.int16)
        if any(part.dtype != kind for parts in arrays for part, kind in zip(parts, wanted, strict=True)):
            raise DeviceError(f"weight {weight}: codes are uint8, scales fp32, zero points int16")
        addresses = [_addresses([parts[i] for parts in arrays], part_index, row_index) for i in range(3)]
        self._call(self._handle.write_codes, weight, row0, *addresses)

    def write_vector(self, weight: int, values: np.ndarray) -> None:
        """Fill a vector weight."""
        spec = self._program.weights[weight]
        values = np.ascontiguousarray(values, np.float32)
        if values.shape != (spec.n,):
            raise DeviceError(f"weight {weight}: expected {spec.n} elements, got shape {values.shape}")
        self._call(self._handle.write_rows, weight, 0, np.array([values.ctypes.data], np.uint64), DTYPES["f32"])

    def submit(self, step: Step) -> int:
        """Run or start one step."""
        self._check_arrays(step)
        if step.native is None:
            step.native = _native.StepBinding(step)
        try:
            return self._handle.submit(step.native, step)
        except _native.NativeError as error:
            raise DeviceError(f"{self.info.name}: {error}") from None

    def _check_arrays(self, step: Step) -> None:
        """Refuse arrays that a device would read or write beyond: those whose width the step itself does not know."""
        program = self._program
        if step.n_external:
            rows = step.external
            if (
                rows is None
                or (rows.dtype.str, *rows.shape[1:]) != ("<f4", program.hidden_size)
                or len(rows) < step.n_external
            ):
                raise DeviceError(
                    f"{self.info.name}: step: external states must be fp32 [{step.n_external}, {program.hidden_size}]"
                )
        if step.out_logits is not None and step.out_logits.shape[1] != program.vocab_size:
            raise DeviceError(
                f"{self.info.name}: step: {step.out_logits.shape[1]} logit columns for {program.vocab_size} tokens"
            )
        if step.out_hidden is not None and step.out_hidden.shape[1] != program.hidden_size:
            raise DeviceError(
                f"{self.info.name}: step: {step.out_hidden.shape[1]} hidden columns, not {program.hidden_size}"
            )
        if step.max_logprobs != program.limits.max_logprobs:
            raise DeviceError(
                f"{self.info.name}: step: {step.max_logprobs} alternatives a row, not {program.limits.max_logprobs}"
            )

    def wait(self, ticket: int) -> None:
        """Block until the step is done."""
        self._call(self._handle.wait, ticket)

    def kv_read(self, blocks: Sequence[int]) -> list[bytes]:
        """Copy blocks to the host."""
        size = self._call(self._handle.kv_block_bytes)
        buffers = [bytearray(size) for _ in blocks]
        self._call(self._handle.kv_move, True, blocks, buffers)
        return [bytes(buffer) for buffer in buffers]

    def kv_write(self, blocks: Sequence[int], data: Sequence[bytes]) -> None:
        """Copy blocks from the host."""
        self._call(self._handle.kv_move, False, blocks, data)

    def stats(self) -> dict[str, int]:
        """Memory and time; with profiling on also `ns_<op>` summed over steps."""
        raw: dict[str, Any] = self._call(self._handle.stats)
        op_ns = raw.pop("op_ns")
        return raw | {f"ns_{name}": op_ns[op.code] for name, op in OPS.items() if op_ns[op.code]}

    def profile(self, on: bool) -> None:
        """Measure each operation from now on (costs two clock reads an instruction)."""
        self._call(self._handle.profile, on)

    def slot_write(self, slot: int, rows: int, data: np.ndarray) -> None:
        """Test access: set an activation [rows, padded columns]."""
        self._call(self._handle.slot_write, slot, rows, np.ascontiguousarray(data, np.float32).reshape(-1))

    def slot_read(self, slot: int, rows: int) -> np.ndarray:
        """Test access: an activation [rows, padded columns] as fp32."""
        out = np.empty(rows * self._program.slots[slot].cols, np.float32)
        self._call(self._handle.slot_read, slot, rows, out)
        return out.reshape(rows, -1)

    def close(self) -> None:
        """Give all memory back."""
        self._handle.close()

    def _call(self, method: Any, *args: Any) -> Any:
        try:
            return method(*args)
        except _native.NativeError as error:
            raise DeviceError(f"{self.info.name}: {error}") from None


def _addresses(sources: Sequence[np.ndarray], part_index: np.ndarray, row_index: np.ndarray) -> np.ndarray:
    """Where each row begins; 0 where there is none."""
    base = np.array([source.ctypes.data for source in sources] or [0], np.uint64)
    stride = np.array([source.strides[0] for source in sources] or [0], np.uint64)
    part = np.maximum(part_index, 0)
    addresses: np.ndarray = base[part] + stride[part] * row_index.astype(np.uint64)
    addresses[part_index < 0] = 0
    return addresses
