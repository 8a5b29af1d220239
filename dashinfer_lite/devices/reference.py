"""The reference device: a program's instructions in NumPy, one at a time. Slow and plain, the oracle of the tests.

It rounds where a slot, weight or cache is 16 bits wide and keeps everything as fp32. Activations lie in one arena at
the offsets that the plan gave them, and unwritten memory is NaN, so that a wrong plan shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dashinfer_lite.devices import reference_ops as math
from dashinfer_lite.devices.base import DeviceInfo
from dashinfer_lite.devices.quant_reference import QuantizedWeight
from dashinfer_lite.devices.reference_step import StepRun
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.instant_quant import instant_quant
from dashinfer_lite.graph.ops import OPS

if TYPE_CHECKING:
    import numpy.typing as npt

    from dashinfer_lite.devices.step import Step
    from dashinfer_lite.graph.program import DType, Program
    from dashinfer_lite.weights.grid import Codes

    Floats = npt.NDArray[np.float32]

NOMINAL_MEMORY = 1 << 34


class ReferenceDevice:
    """NumPy on the calling thread. Paddings other than 1 exercise what lowering does for native devices."""

    def __init__(self, *, col_align: int = 1, head_align: int = 1) -> None:
        self.info = DeviceInfo(
            name="reference",
            tier="numpy",
            detail=f"NumPy {np.__version__}, for tests",
            threads=1,
            col_align=col_align,
            head_align=head_align,
            async_depth=1,
            unified_memory=True,
            memory_total=NOMINAL_MEMORY,
            memory_free=NOMINAL_MEMORY,
        )

    def create(self, program: Program) -> ReferenceExecutable:
        """Builds the executable; DeviceError for an operation that is not in the catalogue."""
        for instr in (*program.body, *program.tail):
            if instr.op not in OPS:
                raise DeviceError(f"the reference device does not know the operation {instr.op!r}")
        return ReferenceExecutable(self.info, program)

    def close(self) -> None:
        """Nothing is held."""


class ReferenceExecutable:
    """A program with its weights, KV pool, activations and last tokens as NumPy arrays."""

    def __init__(self, info: DeviceInfo, program: Program) -> None:
        self.info = info
        self.program = program
        kv = program.kv
        self.quantized = {
            at: QuantizedWeight.empty(spec) for at, spec in enumerate(program.weights) if spec.quant_group
        }
        self.weights = [np.zeros(_weight_shape(spec), np.float32) for spec in program.weights]
        # [block, layer, k | v, head, token, column]
        self.kv: Floats = np.zeros((kv.blocks, kv.layers, 2, kv.heads, kv.block_tokens, kv.head_size), np.float32)
        # The scale of each of those heads where the cache is quantized.
        self.kv_scales: Floats = np.zeros(self.kv.shape[:-1] if kv.is_quantized else (kv.blocks, 0), np.float32)
        self.host_kv = np.full((kv.host_blocks, *self.kv.shape[1:]), np.nan, np.float32)
        self.host_kv_scales = np.full((kv.host_blocks, *self.kv_scales.shape[1:]), np.nan, np.float32)
        # Two bytes of the arena are one fp32 number here, so a 16-bit activation just fits its place.
        self.arena: Floats = np.full(program.arena_bytes // 2, np.nan, np.float32)
        self.last_token = np.zeros(2 * program.limits.max_seqs, np.int32)
        self._touched: set[int] = set()
        self._tickets = 0
        self._open = True

    # ---- weights -----------------------------------------------------------------------------------------------------

    def write_rows(
        self,
        weight: int,
        row0: int,
        sources: Sequence[np.ndarray],
        dtype: DType,
        part_index: np.ndarray,
        row_index: np.ndarray,
    ) -> None:
        """Fills padded rows from source arrays; see `devices.base.Executable`."""
        spec = self.program.weights[weight]
        if spec.quant_group:
            codes = [self._instant_quant(weight, math.widened(source, dtype)) for source in sources]
            self.write_codes(weight, row0, codes, part_index, row_index)
            return
        target = self.weights[weight][row0 : row0 + len(part_index)]
        if spec.kind == "vector" or len(target) != len(part_index):
            raise DeviceError(f"weight {weight}: cannot take rows {row0} to {row0 + len(part_index)}")
        groups = target.reshape(len(target), -1, spec.k_group_padded)
        groups[:] = 0
        for part, source in enumerate(sources):
            rows = np.flatnonzero(part_index == part)
            values = math.rounded(math.widened(source[row_index[rows]], dtype), spec.dtype)
            groups[rows, :, : spec.k_group] = values.reshape(len(rows), -1, spec.k_group)

    def write_codes(
        self, weight: int, row0: int, sources: Sequence[Codes], part_index: np.ndarray, row_index: np.ndarray
    ) -> None:
        """Fills padded rows of a quantized weight from codes; see `devices.base.Executable`."""
        if weight not in self.quantized:
            raise DeviceError(f"weight {weight} is not quantized")
        stop = row0 + len(part_index)
        if stop > self.program.weights[weight].n:
            raise DeviceError(f"weight {weight}: cannot take rows {row0} to {stop}")
        own: list[npt.NDArray[Any]] = list(self.quantized[weight].rows)
        for array in own:
            array[row0:stop][part_index < 0] = 0
        for number, source in enumerate(sources):
            rows = np.flatnonzero(part_index == number)
            given: list[npt.NDArray[Any]] = list(source)
            for array, values in zip(own, given, strict=True):
                array[row0 + rows] = values[row_index[rows]]

    def write_vector(self, weight: int, values: np.ndarray) -> None:
        """Fills a vector weight."""
        if values.shape != self.weights[weight].shape:
            raise DeviceError(f"weight {weight}: expected {self.weights[weight].shape}, got {values.shape}")
        self._check_order(weight, values)
        self.weights[weight][:] = values

    # ---- steps -------------------------------------------------------------------------------------------------------

    def submit(self, step: Step) -> int:
        """Runs the step; its ticket is already done."""
        if not self._open:
            raise DeviceError("the program is closed")
        self._check(step)
        self._swap(step)
        self.kv[step.clear_blocks[: step.n_clear]] = 0
        self.kv_scales[step.clear_blocks[: step.n_clear]] = 0
        self._touched.update(step.clear_blocks[: step.n_clear].tolist())
        run = StepRun(self, step)
        for instr in self.program.body:
            run.execute(instr)
        for row in range(0, step.R, self.program.limits.tail_rows):
            run.begin_tile(row)
            for instr in self.program.tail:
                run.execute(instr)
        self._tickets += 1
        return self._tickets

    def wait(self, ticket: int) -> None:
        """Returns at once: `submit` did the work."""
        if not 0 < ticket <= self._tickets:
            raise DeviceError(f"ticket {ticket} was never given out")

    def _swap(self, step: Step) -> None:
        for block, host in step.swap_out:
            self.host_kv[host], self.host_kv_scales[host] = self.kv[block], self.kv_scales[block]
        for block, host in step.swap_in:
            self.kv[block], self.kv_scales[block] = self.host_kv[host], self.host_kv_scales[host]
        self._touched.update(step.swap_in[:, 0].tolist())

    def _check(self, step: Step) -> None:
        limits, kv = self.program.limits, self.program.kv
        offsets = step.q_offset[: step.B + 1]
        lengths = np.diff(offsets)
        if not (0 < step.T <= limits.max_tokens and 0 < step.B <= limits.max_seqs and step.R >= 0):
            raise DeviceError(f"step: {step.T} tokens, {step.B} sequences and {step.R} logit rows exceed {limits}")
        if offsets[0] != 0 or offsets[-1] != step.T or (lengths < 1).any() or (step.kv_len[: step.B] < lengths).any():
            raise DeviceError("step: the sequences do not cover the tokens")
        for b, length in enumerate(step.kv_len[: step.B] if kv.layers else ()):
            blocks = step.block_table[b, : -(-int(length) // kv.block_tokens)]
            if len(blocks) * kv.block_tokens < length or ((blocks < 0) | (blocks >= kv.blocks)).any():
                raise DeviceError(f"step: sequence {b} has no valid block for each of its {length} tokens")
        if (step.tokens[: step.T] < -len(self.last_token)).any():
            raise DeviceError("step: a token refers to a sequence slot that does not exist")
        for swaps in (step.swap_out, step.swap_in):
            if ((swaps < 0) | (swaps >= (kv.blocks, kv.host_blocks))).any():
                raise DeviceError("step: swapped block does not exist")
        rows = step.logit_row[: step.R]
        if ((rows < 0) | (rows >= step.T)).any() or (step.sample["slot"][: step.R] >= len(self.last_token)).any():
            raise DeviceError("step: a logit row is out of range")

    # ---- access from outside a step ----------------------------------------------------------------------------------

    def kv_read(self, blocks: Sequence[int]) -> list[bytes]:
        """Copies blocks to the host."""
        return [self.kv[block].tobytes() + self.kv_scales[block].tobytes() for block in blocks]

    def kv_write(self, blocks: Sequence[int], data: Sequence[bytes]) -> None:
        """Copies blocks from the host."""
        for block, content in zip(blocks, data, strict=True):
            values, scales = np.split(np.frombuffer(content, np.float32), [self.kv[block].size])
            self.kv[block] = values.reshape(self.kv.shape[1:])
            self.kv_scales[block] = scales.reshape(self.kv_scales.shape[1:])

    def stats(self) -> dict[str, int]:
        """Memory by what is in use; times are not measured."""
        return {
            "weight_bytes": sum(each.nbytes for each in self.weights)
            + sum(each.nbytes for each in self.quantized.values()),
            "kv_bytes": len(self._touched) * (self.kv[:1].nbytes + self.kv_scales[:1].nbytes),
            "arena_bytes": self.arena.nbytes,
            "last_step_ns": 0,
        }

    def profile(self, on: bool) -> None:
        """Times are not measured."""

    def slot_write(self, slot: int, rows: int, data: np.ndarray) -> None:
        """Test access: sets an activation [rows, padded columns]."""
        self.slot(slot, rows)[:] = math.rounded(data.reshape(rows, -1), self.program.slots[slot].dtype)

    def slot_read(self, slot: int, rows: int) -> Floats:
        """Test access: an activation [rows, padded columns]."""
        return np.array(self.slot(slot, rows), np.float32)

    def close(self) -> None:
        """Gives the arrays back."""
        self._open = False
        self.weights = []
        self.quantized = {}
        self.kv = self.kv_scales = self.host_kv = self.host_kv_scales = self.arena = np.zeros(0, np.float32)

    def slot(self, at: int, rows: int) -> Any:
        """The arena memory of a slot's first rows: fp32, or the int8 planes of a quantized value as int16."""
        slot = self.program.slots[at]
        root = slot if slot.parent < 0 else self.program.slots[slot.parent]
        capacity = self.program.limits.capacity(root.rows)
        if rows > capacity:
            raise DeviceError(f"slot {at} has {capacity} rows, not {rows}")
        start = root.offset // 2
        if slot.dtype == "i8":
            # A byte of the arena is half an fp32 number here, which an int16 just fills.
            return self.arena[start : start + rows * slot.cols // 2].view(np.int16).reshape(rows, slot.cols)
        whole = self.arena[start : start + rows * root.cols].reshape(rows, root.cols)
        return whole[:, slot.first_col : slot.first_col + slot.cols]

    def _check_order(self, weight: int, values: np.ndarray) -> None:
        for instr in (*self.program.body, *self.program.tail):
            if instr.op == "quantize" and instr.weights[:1] == (weight,):
                order, columns = values.view(np.int32)[: instr.ints[0]], self.program.slots[instr.inputs[0]].cols
                if order.min() < 0 or order.max() >= columns or len(np.unique(order)) < len(order):
                    raise DeviceError(f"weight {weight}: its order does not name different ones of {columns} columns")

    def _instant_quant(self, weight: int, rows: Floats) -> Codes:
        try:
            return instant_quant(rows, self.quantized[weight].grid)
        except ValueError as error:
            raise DeviceError(f"weight {weight}: {error}") from None


def _weight_shape(spec: Any) -> tuple[int, ...]:
    if spec.quant_group:
        return (0, 0)
    return (spec.n,) if spec.kind == "vector" else (spec.n, spec.k // spec.k_group * spec.k_group_padded)
