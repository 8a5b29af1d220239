"""Puts a `quantize` before products whose matrix is quantized; those that want the same of a value share one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from dashinfer_lite.graph.ops import OPS, PRODUCTS
from dashinfer_lite.graph.trace import Columns, Node, Trace, ValueType, Weight
from dashinfer_lite.weights.grid import order_of

if TYPE_CHECKING:
    from dashinfer_lite.graph.plan import Layout
    from dashinfer_lite.graph.quant import QuantSpec

CELL: Final = 64  # elements of K that integer kernels take at once


def padded_group(width: int) -> int:
    """What a quantization group of `width` elements takes."""
    return -(-width // CELL) * CELL


def quantize_inputs(trace: Trace, layout: Layout) -> Trace:
    """linear(x) with a quantized matrix becomes linear(planes, residual, grid), with planes and grid made of x.

    Products of experts likewise.
    """
    types = {node.id: node.type for node in trace.nodes if node.type is not None}
    made: dict[tuple[int, int, int, bytes | None], tuple[int, int]] = {}
    orders: dict[tuple[bytes, Columns], Weight] = {}
    nodes: list[Node] = []
    fresh = trace.next_id()
    for node in trace.nodes:
        matrix = node.weight(0) if node.op in PRODUCTS else None
        if matrix is None or matrix.quant is None:
            nodes.append(node)
            continue
        value, spec = node.inputs[0], matrix.quant
        x = types[value]
        wanted = _Quantized(x, spec, layout, matrix.name)
        key = (value, wanted.width, spec.planes, spec.grid.order)
        if key not in made:
            order = None
            if spec.grid.order is not None:
                order = orders.setdefault((spec.grid.order, x.parts[0]), wanted.order())
            grid = Node(fresh, "grid", (), ValueType(x.rows, (Columns(2 * wanted.groups),)))
            planes = ValueType(x.rows, (Columns(spec.planes * wanted.groups * padded_group(wanted.width), 1, "bytes"),))
            attrs = wanted.attributes()
            nodes += [grid, Node(fresh + 1, "quantize", (value, fresh), planes, (order,) if order else (), attrs)]
            made[key] = (fresh + 1, fresh)
            fresh += 2
        others = node.inputs[1:]
        missing = OPS[node.op].inputs.index("grid?") - 1 - len(others)
        nodes.append(replace(node, inputs=(made[key][0], *others, *[-1] * missing, made[key][1])))
    return trace.with_nodes(nodes)


@dataclass(frozen=True, slots=True)
class _Quantized:
    """A value of columns `x` as the matrix called `name` wants it."""

    x: ValueType
    spec: QuantSpec
    layout: Layout
    name: str

    def __post_init__(self) -> None:
        first = self.x.parts[0]
        if any((part.size, part.unit) != (first.size, first.unit) for part in self.x.parts):
            raise ValueError(f"{self.name}: its input has parts of different structure")

    @property
    def width(self) -> int:
        return self.spec.grid.width(self.x.cols)

    @property
    def groups(self) -> int:
        return self.spec.grid.groups(self.x.cols)

    def order(self) -> Weight:
        """The padded column of each element of K, as an fp32 vector of int32 bits."""
        size, run = self.x.parts[0].size, self.layout.run(self.x.parts[0])
        order = order_of(self.spec.grid)
        if len(order) != self.x.cols:
            raise ValueError(f"{self.name}: its order is that of {len(order)} columns, not of {self.x.cols}")
        columns = (order // size * run + order % size).astype(np.int32)
        return Weight("vector", f"{self.name}.order", value=columns.view(np.float32))

    def attributes(self) -> dict[str, float]:
        first, run = self.x.parts[0], self.layout.run(self.x.parts[0])
        # Where there is an order, it knows of the padding; the padding of the last run is simply not read.
        runs = sum(part.count for part in self.x.parts)
        heads = runs > 1 and run != first.size and self.spec.grid.order is None
        return {
            "K": self.x.cols,
            "group": self.width,
            "planes": self.spec.planes,
            "head": first.size if heads else 0,
            "padded_head": run if heads else 0,
        }
