"""The recorded forward pass: nodes in the order in which they may run, before dtypes, padding and memory are known.

Passes turn one trace into another; lowering turns the last one into a Program. Nothing here is ever changed in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from dashinfer_lite.graph.ops import OPS

if TYPE_CHECKING:
    import numpy as np

    from dashinfer_lite.graph.program import PrefixRule, Rows
    from dashinfer_lite.graph.quant import QuantSpec


@dataclass(frozen=True, slots=True)
class Columns:
    """`count` runs of `size` columns; `unit` says to what lowering pads each run.

    "columns": a plain run, padded to the device's col_align. "heads": attention heads, each padded to its head_align.
    "gates": the output of a gated linear, padded so that gate and up rows alternate in full groups of 16.
    "bytes": integers of a quantized value, which are padded already.
    """

    size: int
    count: int = 1
    unit: Literal["columns", "heads", "gates", "bytes"] = "columns"

    @property
    def width(self) -> int:
        return self.size * self.count


@dataclass(frozen=True, slots=True)
class ValueType:
    """A value [rows, columns]: one run structure, or several side by side where linears were stacked."""

    rows: Rows
    parts: tuple[Columns, ...]

    @property
    def cols(self) -> int:
        """Columns without padding."""
        return sum(part.width for part in self.parts)

    @property
    def heads(self) -> tuple[int, int] | None:
        """(count, D) of a value made of heads."""
        part = self.parts[0]
        return (part.count, part.size) if len(self.parts) == 1 and part.unit == "heads" else None


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Rows of one tensor of the checkpoint, in the run structure that they produce.

    `rows`: None for all, (start, stop) for a part of a fused tensor, or one row number for each of the columns. A
    tensor of None stands for zeros.
    """

    tensor: str | None
    columns: Columns
    rows: tuple[int, int] | np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A weight of a node: sources one below the other; with `gated` their two halves in alternating groups of 16 rows.

    A matrix takes its K columns from the value that it multiplies. One of experts has a source for each of them. `name`
    is for people. `value` is a constant in place of sources. `offset` is added to every element, `normalize` scales
    each row to length 1. `quant` is how the matrix is multiplied in integers, None for one that is not.
    """

    kind: Literal["matrix", "table", "vector"]
    name: str
    sources: tuple[Source, ...] = ()
    gated: bool = False
    value: np.ndarray | None = None
    offset: float = 0.0
    normalize: bool = False
    quant: QuantSpec | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules whose matrices it is made of, such as "model.layers.0.mlp.down_proj"."""
        return tuple(source.tensor.removesuffix(".weight") for source in self.sources if source.tensor is not None)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: it computes the value named by `id`, or has an effect (`type` None).

    `op` is a key of OPS, or "view": part `attrs["part"]` of a value made of several, or "grid": a place for the second
    result of the node that follows. Inputs and weights stand in the order of the catalogue; an input of -1 is missing.
    """

    id: int
    op: str
    inputs: tuple[int, ...] = ()
    type: ValueType | None = None
    weights: tuple[Weight | None, ...] = ()
    attrs: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_effect(self) -> bool:
        return self.type is None

    @property
    def is_instruction(self) -> bool:
        """False for a node that only names memory."""
        return self.op not in ("view", "grid")

    @property
    def operands(self) -> tuple[int, ...]:
        """The inputs that are there."""
        return tuple(value for value in self.inputs if value >= 0)

    def weight(self, at: int) -> Weight | None:
        return self.weights[at] if at < len(self.weights) else None

    def attr(self, name: str) -> float:
        return self.attrs.get(name, 0)


@dataclass(frozen=True, slots=True)
class KvShape:
    """What all attention layers have in common."""

    layers: int
    heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A model's forward pass. Nodes run in order, so an effect (a KV write) precedes what relies on it."""

    nodes: tuple[Node, ...]
    kv: KvShape
    vocab_size: int
    hidden_size: int
    notes: Mapping[str, str] = field(default_factory=dict)
    prefix: PrefixRule | None = None

    def with_nodes(self, nodes: Sequence[Node]) -> Trace:
        return replace(self, nodes=tuple(nodes))

    def producers(self) -> dict[int, Node]:
        """Value → the node that computes it."""
        return {node.id: node for node in self.nodes if not node.is_effect}

    def uses(self) -> Counter[int]:
        """Value → how often it is an input."""
        return Counter(value for node in self.nodes for value in node.inputs)

    def consumers(self) -> dict[int, list[Node]]:
        """Value → the nodes that read it."""
        result: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                result.setdefault(value, []).append(node)
        return result

    @property
    def experts_per_token(self) -> int:
        """k, the rows of an "E" value for each token; 0 where there are no experts."""
        return max((int(node.attr("chosen")) for node in self.nodes if node.op == "route"), default=0)

    def next_id(self) -> int:
        return max(node.id for node in self.nodes) + 1

    def check(self) -> None:
        """Raises ValueError where a node reads what was not computed before it, or has operands foreign to its op."""
        seen: set[int] = set()
        for node in self.nodes:
            if not seen.issuperset(node.inputs):
                raise ValueError(f"node {node.id} ({node.op}) reads values that are not computed before it")
            if node.id in seen:
                raise ValueError(f"value {node.id} is computed twice")
            if not node.is_effect:
                seen.add(node.id)
            if node.op == "view":
                continue
            op = OPS[node.op]
            required = sum(not name.endswith("?") for name in op.inputs)
            if not required <= len(node.inputs) <= len(op.inputs) or len(node.weights) > len(op.weights):
                raise ValueError(
                    f"node {node.id}: {node.op} has {len(node.inputs)} inputs and {len(node.weights)} weights"
                )
            if unknown := set(node.attrs) - {*op.ints, *op.floats}:
                raise ValueError(f"node {node.id}: {node.op} has no attributes {sorted(unknown)}")
            if op.output == node.is_effect:
                raise ValueError(f"node {node.id}: {node.op} has the wrong kind of result")
