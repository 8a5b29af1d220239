"""Types and memory of a trace's values: dtypes, padded columns, slots, and where each slot lies in the arena."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dashinfer_lite.graph.ops import GATE_GROUP, OPS, PRODUCTS
from dashinfer_lite.graph.program import Slot
from dashinfer_lite.graph.quantize_inputs import quantize_inputs
from dashinfer_lite.graph.trace import Columns, Node, Trace, ValueType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.graph.program import DType, Limits

ITEM_BYTES: Final = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "u8": 1}
KV_BITS: Final = {"f32": 32, "f16": 16, "bf16": 16, "u8": 8, "u4": 4}
KV_GRID_BYTES: Final = 16  # scales and zero points of a token's K and V in one head, where they are codes
ALIGNMENT: Final = 64
ROW_BAND: Final = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """How a device pads: plain columns to multiples of `col_align`, each head to a multiple of `head_align`."""

    col_align: int
    head_align: int

    def __post_init__(self) -> None:
        if self.head_align % self.col_align:
            raise ValueError(f"head_align {self.head_align} is no multiple of col_align {self.col_align}")

    def run(self, part: Columns) -> int:
        """The padded size of one run of columns."""
        align = {
            "columns": self.col_align,
            "heads": self.head_align,
            "gates": math.lcm(self.col_align, GATE_GROUP),
            "bytes": 1,
        }[part.unit]
        return -(-part.size // align) * align

    def width(self, part: Columns) -> int:
        return part.count * self.run(part)

    def cols(self, type: ValueType) -> int:
        return sum(map(self.width, type.parts))


@dataclass(frozen=True, slots=True)
class Plan:
    """A trace whose values have dtypes and slots.

    Body nodes come before tail nodes; views and grids have slots but are no instructions. `quantized` maps planes to
    the value that they were made of.
    """

    body: tuple[Node, ...]
    tail: tuple[Node, ...]
    types: dict[int, ValueType]
    dtypes: dict[int, DType]
    slot_of: dict[int, int]
    slots: tuple[Slot, ...]
    arena_bytes: int
    quantized: dict[int, int]

    def multiplied(self, node: Node) -> ValueType | None:
        """The value that a node's matrix multiplies, before it was quantized; without inputs, the node's own."""
        value = node.inputs[0] if node.inputs else node.id
        return self.types.get(self.quantized.get(value, value))


def plan(trace: Trace, layout: Layout, activation: DType, limits: Limits) -> Plan:
    """Gives every value a dtype and a slot.

    Before linears with a quantized matrix their input is quantized. A value that is only multiplied, by other linears
    or as integers of 8 bits, has the activation type, every other one is fp32; where a linear needs the activation type
    of an fp32 value, a cast is inserted. Slots of values that are not alive together share memory.
    """
    trace, dtypes = _assign_dtypes(quantize_inputs(trace, layout), activation)
    body = [node for node in trace.nodes if not _is_tail(node)]
    tail = [node for node in trace.nodes if _is_tail(node)]
    trace, homes = _assign_homes(trace.with_nodes(body + tail), dtypes)
    types = {node.id: node.type for node in trace.nodes if node.type is not None}
    first_tail = next((at for at, node in enumerate(trace.nodes) if _is_tail(node)), len(trace.nodes))

    slot_of, slots = _slots(trace, homes, dtypes, layout)
    spans = _life_spans(trace, homes, first_tail)
    sizes = {root: _slot_bytes(slots[slot_of[root]], limits) for root in spans}
    offsets, arena_bytes = _place(spans, sizes)
    roots = {slot_of[root]: offset for root, offset in offsets.items()}
    placed = tuple(replace(slot, offset=roots[at]) if at in roots else slot for at, slot in enumerate(slots))
    quantized = {node.id: node.inputs[0] for node in trace.nodes if node.op == "quantize"}
    return Plan(
        trace.nodes[:first_tail], trace.nodes[first_tail:], types, dtypes, slot_of, placed, arena_bytes, quantized
    )


def _is_tail(node: Node) -> bool:
    return node.op in ("hidden", "sample") or (node.type is not None and node.type.rows == "R")


def kv_token_bytes(dtype: DType, head_size: int) -> int:
    """Bytes of one token's K and V in one head; `head_size` is padded as the device pads it."""
    return 2 * head_size * KV_BITS[dtype] // 8 + (KV_GRID_BYTES if dtype in ("u8", "u4") else 0)


# ---- dtypes --------------------------------------------------------------------------------------------------------


def _assign_dtypes(trace: Trace, activation: DType) -> tuple[Trace, dict[int, DType]]:
    dtypes: dict[int, DType] = {node.id: "f32" for node in trace.nodes if not node.is_effect}
    dtypes |= {node.id: "i8" for node in trace.nodes if node.op == "quantize"}
    if activation == "f32":
        return trace, dtypes
    consumers, producers = trace.consumers(), trace.producers()

    def only_multiplied(value: int) -> bool:
        users = consumers.get(value, [])
        return bool(users) and all(
            (user.op in PRODUCTS and value not in user.inputs[1:])
            or (user.op == "quantize" and user.attr("planes") == 1)  # 8 bits of it stay; 16 would be more than bf16 has
            or (user.op in ("view", "gather_rows") and only_multiplied(user.id))
            for user in users
        )

    for node in trace.nodes:
        if node.op in ("view", "gather_rows"):
            dtypes[node.id] = dtypes[node.inputs[0]]
        elif node.is_instruction and not node.is_effect and OPS[node.op].narrow and only_multiplied(node.id):
            dtypes[node.id] = activation

    nodes: list[Node] = []
    narrow: dict[int, int] = {}
    fresh = trace.next_id()
    for node in trace.nodes:
        x = node.inputs[0] if node.op in PRODUCTS else -1
        if x >= 0 and dtypes[x] not in (activation, "i8"):
            if x not in narrow:
                narrow[x] = fresh
                dtypes[fresh] = activation
                nodes.append(Node(fresh, "cast", (x,), producers[x].type))
                fresh += 1
            node = replace(node, inputs=(narrow[x], *node.inputs[1:]))
        nodes.append(node)
    return trace.with_nodes(nodes), dtypes


# ---- storage -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a value lives: in the storage of value `root`, whole (part -1) or in one of its parts."""

    root: int
    part: int = -1

    def overlaps(self, other: _Home) -> bool:
        return self.root == other.root and (self.part == other.part or min(self.part, other.part) < 0)


def _assign_homes(trace: Trace, dtypes: dict[int, DType]) -> tuple[Trace, dict[int, _Home]]:
    """Decides which values share storage: views, and outputs that overwrite an input nobody reads again.

    Where an op must overwrite an input that is still needed, a copy is inserted before it.
    """
    last_use: dict[int, int] = {}
    for at, node in enumerate(trace.nodes):
        last_use.update(dict.fromkeys(node.operands if node.op != "view" else (), at))
    types: dict[int, ValueType | None] = {node.id: node.type for node in trace.nodes}
    homes: dict[int, _Home] = {}
    family: dict[int, list[int]] = {}
    nodes: list[Node] = []
    fresh = trace.next_id()

    def settle(value: int, home: _Home) -> None:
        homes[value] = home
        family.setdefault(home.root, []).append(value)

    def is_free(node: Node, index: int, at: int) -> bool:
        """Whether nothing else needs what input `index` holds, now or later."""
        home = homes[node.inputs[index]]
        others = node.inputs[:index] + node.inputs[index + 1 :]
        return not any(homes[other].overlaps(home) for other in others if other >= 0) and all(
            last_use.get(other, -1) <= at for other in family[home.root] if homes[other].overlaps(home)
        )

    for at, node in enumerate(trace.nodes):
        if node.op == "view":
            settle(node.id, _Home(homes[node.inputs[0]].root, int(node.attr("part"))))
            nodes.append(node)
            continue
        if node.op == "grid":
            settle(node.id, _Home(node.id))
            nodes.append(node)
            continue
        op = OPS[node.op]
        for index in op.overwrites:
            value = node.inputs[index]
            if is_free(node, index, at):
                continue
            nodes.append(Node(fresh, "cast", (value,), types[value]))
            dtypes[fresh] = dtypes[value]
            types[fresh], last_use[fresh] = types[value], at
            settle(fresh, _Home(fresh))
            node = replace(node, inputs=(*node.inputs[:index], fresh, *node.inputs[index + 1 :]))
            fresh += 1
        if not node.is_effect:
            reused = (
                node.inputs[i]
                for i in op.overwrites[:1] or op.in_place
                if i < len(node.inputs) and types.get(node.inputs[i]) == node.type and is_free(node, i, at)
                if dtypes[node.inputs[i]] == dtypes[node.id]
            )
            settle(node.id, homes.get(next(reused, -1), _Home(node.id)))
        nodes.append(node)
    return trace.with_nodes(nodes), homes


def _slots(
    trace: Trace, homes: dict[int, _Home], dtypes: dict[int, DType], layout: Layout
) -> tuple[dict[int, int], list[Slot]]:
    """One slot a storage and one a view of it; values in the same place have the same slot."""
    slots: list[Slot] = []
    at: dict[_Home, int] = {}
    slot_of: dict[int, int] = {}
    types = {node.id: node.type for node in trace.nodes if node.type is not None}
    for node in trace.nodes:
        if node.type is None:
            continue
        home = homes[node.id]
        if home not in at:
            at[home] = len(slots)
            cols = layout.cols(node.type)
            if home.part < 0:
                slots.append(Slot(dtypes[node.id], node.type.rows, cols, name=_slot_name(node)))
            else:
                first = sum(map(layout.width, types[home.root].parts[: home.part]))
                parent = slot_of[home.root]
                slots.append(Slot(dtypes[node.id], node.type.rows, cols, parent, first, name=_slot_name(node)))
        slot_of[node.id] = at[home]
    return slot_of, slots


def _slot_name(node: Node) -> str:
    return f"%{node.id}"


# ---- the arena -----------------------------------------------------------------------------------------------------


def _life_spans(trace: Trace, homes: dict[int, _Home], first_tail: int) -> dict[int, tuple[int, int]]:
    """Storage → (first, last) instruction that touches it.

    What the tail reads of the body lives to the end: it is read again for every tile.
    """
    spans: dict[int, tuple[int, int]] = {}
    for at, node in enumerate(trace.nodes):
        if node.op == "view":
            continue
        for value in (*node.operands, *(() if node.is_effect else (node.id,))):
            root = homes[value].root
            first = spans.get(root, (at, at))[0]
            spans[root] = (first, len(trace.nodes) if at >= first_tail > first else at)
    return spans


def _slot_bytes(slot: Slot, limits: Limits) -> int:
    return -(-limits.capacity(slot.rows) // ROW_BAND) * ROW_BAND * slot.cols * ITEM_BYTES[slot.dtype]


def _place(spans: dict[int, tuple[int, int]], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Largest first, each at the lowest offset that is free during its life."""
    offsets: dict[int, int] = {}
    total = 0
    for root in sorted(spans, key=lambda value: (-sizes[value], spans[value])):
        first, last = spans[root]
        busy = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if spans[other][0] <= last and first <= spans[other][1]
        )
        offsets[root] = offset = _lowest_gap(busy, sizes[root])
        total = max(total, offset + sizes[root])
    return offsets, -(-total // ALIGNMENT) * ALIGNMENT


def _lowest_gap(busy: Sequence[tuple[int, int]], size: int) -> int:
    offset = 0
    for start, stop in busy:
        if start - offset >= size:
            break
        offset = max(offset, -(-stop // ALIGNMENT) * ALIGNMENT)
    return offset
