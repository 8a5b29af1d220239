"""Lowering: a planned trace becomes the flat Program that devices take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dashinfer_lite.graph.ops import GATE_GROUP, OPS
from dashinfer_lite.graph.plan import ITEM_BYTES, ROW_BAND, Layout, Plan, plan
from dashinfer_lite.graph.program import Instr, KvSpec, Part, Program, WeightSpec
from dashinfer_lite.graph.quantize_inputs import padded_group
from dashinfer_lite.graph.trace import Columns, Node, Source, Trace, ValueType, Weight

if TYPE_CHECKING:
    from dashinfer_lite.graph.program import DType, Limits, Slot
    from dashinfer_lite.weights.grid import ScaleDType


def lower(
    trace: Trace,
    layout: Layout,
    *,
    dtype: DType,
    kv_dtype: DType,
    limits: Limits,
    blocks: int,
    block_tokens: int,
    host_blocks: int = 0,
) -> Program:
    """Returns the program of a trace for a device that pads as `layout` says; matrices are kept as `dtype`."""
    limits = replace(limits, experts_per_token=trace.experts_per_token)
    planned = plan(trace, layout, "bf16" if dtype == "bf16" else "f32", limits)
    weights = _Weights(layout, dtype)
    body, tail = (
        _synchronised([_Access(planned, node, weights) for node in nodes if node.is_instruction], limits)
        for nodes in (planned.body, planned.tail)
    )
    tables = [node for node in trace.nodes if node.op == "rope_table"]
    kv = KvSpec(trace.kv.layers, trace.kv.heads, trace.kv.head_size, kv_dtype, block_tokens, blocks, host_blocks)
    return Program(
        planned.slots,
        body,
        tail,
        tuple(weights.specs),
        kv,
        limits,
        planned.arena_bytes,
        trace.vocab_size,
        trace.hidden_size,
        history_rope=min((int(node.attr("original")) for node in tables if node.attr("kind")), default=0),
        position_rows=max([sum(node.attr(f"section{i}") > 0 for i in range(3)) for node in tables], default=0) or 1,
        prefix=trace.prefix,
        notes=dict(trace.notes),
    )


# ---- instructions --------------------------------------------------------------------------------------------------


class _Access:
    """An instruction, and what it reads and writes: column ranges of slots, and layers of the KV cache."""

    def __init__(self, planned: Plan, node: Node, weights: _Weights) -> None:
        op = OPS[node.op]
        inputs = tuple(planned.slot_of.get(value, -1) for value in node.inputs)
        outputs = () if node.is_effect else (planned.slot_of[node.id],)
        if node.op == "quantize":
            inputs, outputs = inputs[:1], (*outputs, inputs[1])
        x = planned.multiplied(node)
        self.instr = Instr(
            node.op,
            inputs,
            outputs,
            tuple(-1 if weight is None else weights.add(weight, x) for weight in node.weights),
            tuple(int(node.attr(name)) for name in op.ints),
            tuple(float(node.attr(name)) for name in op.floats),
        )
        self.slots = planned.slots
        self.reads = {slot for slot in inputs if slot >= 0}
        self.writes = {*outputs, *(inputs[i] for i in op.overwrites)}
        layer = int(node.attr("layer")) if "layer" in op.ints else -1
        self.kv_read = layer if node.op == "attention" else -1
        self.kv_written = layer if node.op in ("kv_write", "rope_kv") else -1

    def conflicts(self, earlier: _Access, limits: Limits) -> bool:
        """Whether this instruction needs the earlier one to be complete."""
        if earlier.kv_written >= 0 and earlier.kv_written in (self.kv_read, self.kv_written):
            return True
        pairs = [(mine, theirs) for mine in self.writes for theirs in earlier.reads | earlier.writes]
        pairs += [(mine, theirs) for mine in self.reads for theirs in earlier.writes]
        return any(_overlap(self.slots, mine, theirs, limits) for mine, theirs in pairs)


def _synchronised(accesses: Sequence[_Access], limits: Limits) -> tuple[Instr, ...]:
    """Threads meet after an instruction only where a later one relies on what happened since they last met."""
    instrs: list[Instr] = []
    since: list[_Access] = []
    for access, following in zip(accesses, [*accesses[1:], None], strict=True):
        since.append(access)
        sync = following is None or any(following.conflicts(earlier, limits) for earlier in since)
        if sync:
            since = []
        instr = access.instr
        instrs.append(Instr(instr.op, instr.inputs, instr.outputs, instr.weights, instr.ints, instr.floats, sync))
    return tuple(instrs)


def _overlap(slots: Sequence[Slot], a: int, b: int, limits: Limits) -> bool:
    """Whether two slots share memory."""
    root_a, root_b = (at if slots[at].parent < 0 else slots[at].parent for at in (a, b))
    if root_a == root_b:
        first, second = (slots[at].first_col for at in (a, b))
        return first < second + slots[b].cols and second < first + slots[a].cols
    start_a, stop_a = byte_range(slots[root_a], limits)
    start_b, stop_b = byte_range(slots[root_b], limits)
    return start_a < stop_b and start_b < stop_a


def byte_range(root: Slot, limits: Limits) -> tuple[int, int]:
    """The arena bytes of a slot that is no view."""
    rows = -(-limits.capacity(root.rows) // ROW_BAND) * ROW_BAND
    return root.offset, root.offset + rows * root.cols * ITEM_BYTES[root.dtype]


# ---- weights -------------------------------------------------------------------------------------------------------


class _Weights:
    """The weights of the program being made; one that several instructions read stands here once."""

    def __init__(self, layout: Layout, dtype: DType) -> None:
        self.layout = layout
        self.dtype = dtype
        self.specs: list[WeightSpec] = []
        self._at: dict[int, int] = {}
        self._maps: dict[bytes, np.ndarray] = {}

    def add(self, weight: Weight, x: ValueType | None) -> int:
        """Its number; `x` is the value that it multiplies, or the value that an embedding gives."""
        if id(weight) not in self._at:
            self._at[id(weight)] = len(self.specs)
            self.specs.append(self._spec(weight, x))
        return self._at[id(weight)]

    def _spec(self, weight: Weight, x: ValueType | None) -> WeightSpec:
        if weight.value is not None:
            return self._constant(weight, weight.value)
        parts, part_index, row_index = self._rows(weight)
        k, k_group, k_group_padded = 1, 1, 1
        if weight.kind != "vector" and x is not None:
            first = x.parts[0]
            if any((part.size, part.unit) != (first.size, first.unit) for part in x.parts):
                raise ValueError(f"{weight.name}: its input has parts of different structure")
            k, k_group, k_group_padded = x.cols, first.size, self.layout.run(first)
        dtype: DType = "f32" if weight.kind == "vector" else self.dtype
        scale_dtype: ScaleDType = "f32"
        quant_group = 0
        if weight.quant is not None:
            dtype, scale_dtype = ("u8" if weight.quant.bits == 8 else "u4"), weight.quant.grid.scale_dtype
            quant_group = k_group = weight.quant.grid.width(k)
            k_group_padded = padded_group(k_group)
        return WeightSpec(
            "linear" if weight.kind == "matrix" else weight.kind,
            weight.name,
            dtype,
            len(part_index),
            k,
            k_group,
            k_group_padded,
            parts,
            part_index,
            row_index,
            offset=weight.offset,
            normalize=weight.normalize,
            quant_group=quant_group,
            scale_dtype=scale_dtype,
        )

    def _constant(self, weight: Weight, value: np.ndarray) -> WeightSpec:
        padded = np.zeros(self.layout.run(Columns(len(value))), np.float32)
        padded[: len(value)] = value
        nowhere = np.full(len(padded), -1, np.int32)
        return WeightSpec(
            "vector", weight.name, "f32", len(padded), 1, 1, 1, (), nowhere, np.zeros_like(nowhere), value=padded
        )

    def _rows(self, weight: Weight) -> tuple[tuple[Part, ...], np.ndarray, np.ndarray]:
        """The parts, and for each padded row its part and its row there."""
        parts: dict[Part, int] = {}
        maps = []
        for source in weight.sources:
            part = (
                Part(source.tensor or "", *source.rows) if isinstance(source.rows, tuple) else Part(source.tensor or "")
            )
            number = parts.setdefault(part, len(parts)) if source.tensor is not None else -1
            maps.append(self._padded_rows(source, number, weight.gated))
        if weight.gated:
            half = len(maps) // 2
            rows = _interleaved(np.concatenate(maps[:half]), np.concatenate(maps[half:]))
        else:
            rows = np.concatenate(maps)
        return tuple(parts), self._kept_once(rows[:, 0]), self._kept_once(rows[:, 1])

    def _kept_once(self, values: np.ndarray) -> np.ndarray:
        """The array, or an equal one from before: the layers of a model differ in names, not in shapes."""
        values = np.ascontiguousarray(values)
        return self._maps.setdefault(values.tobytes(), values)

    def _padded_rows(self, source: Source, part: int, gated: bool) -> np.ndarray:
        """[padded rows, 2]: (part, row), (-1, 0) for padding."""
        columns = source.columns if not gated else Columns(source.columns.size, source.columns.count, "gates")
        rows = np.arange(columns.width, dtype=np.int32)
        if isinstance(source.rows, np.ndarray):
            rows = source.rows.astype(np.int32)
        result = np.full((columns.count, self.layout.run(columns), 2), (-1, 0), np.int32)
        if part >= 0:
            result[:, : columns.size, 0] = part
            result[:, : columns.size, 1] = rows.reshape(columns.count, columns.size)
        return result.reshape(-1, 2)


def _interleaved(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Groups of 16 gate rows and 16 up rows, alternating."""
    groups = [rows.reshape(-1, 1, GATE_GROUP, 2) for rows in (gate, up)]
    return np.concatenate(groups, axis=1).reshape(-1, 2)
