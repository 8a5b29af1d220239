"""The part of `Graph` that declares mixtures of experts.

routing = g.route(g.linear(x, "gate", E), k)
gate = g.expert_linear(x, routing, "experts.{}.gate_proj", I)
up = g.expert_linear(x, routing, "experts.{}.up_proj", I)
y = g.expert_sum(g.silu(gate) * up, routing, "experts.{}.down_proj", H)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dashinfer_lite.graph.ops import ACT_NONE
from dashinfer_lite.graph.trace import Columns, Node, Source, ValueType, Weight

if TYPE_CHECKING:
    from dashinfer_lite.graph.builder import Value


class ExpertOps(ABC):
    """Tokens choose k of E experts each; a value of experts has k rows for each token."""

    _prefix: str
    _chosen = 0

    def route(self, logits: Value, chosen: int, *, renormalize: bool = False, scale: float = 1.0) -> Value:
        """The `chosen` experts of each token and their weights, from logits[T,E].

        A weight is the expert's softmax over all E, with `renormalize` divided by the sum of the chosen, times `scale`.
        """
        if not 1 <= chosen <= logits.cols:
            raise ValueError(f"{chosen} of {logits.cols} experts")
        if self._chosen not in (0, chosen):
            raise ValueError(f"{chosen} experts a token, where earlier layers have {self._chosen}")
        self._chosen = chosen
        type = ValueType("T", (Columns(2 * chosen),))
        return self._add(
            "route",
            (logits,),
            type,
            experts=logits.cols,
            chosen=chosen,
            renormalize=int(renormalize),
            scale=scale,
        )

    def expert_linear(self, x: Value, routing: Value, name: str, n: int) -> Value:
        """y[T·k,N] = x[T,K] · wᵀ with w the matrix of the row's expert e, `name`.format(e).weight[N,K]."""
        experts, weight = self._experts(routing, name, n)
        return self._add(
            "expert_linear", (x, routing), ValueType("E", (Columns(n),)), (weight,), experts=experts, act=ACT_NONE
        )

    def expert_sum(self, x: Value, routing: Value, name: str, n: int) -> Value:
        """y[T,N] = Σ over a token's experts of weight · (x[T·k,K] · wᵀ), with w as in `expert_linear`."""
        if x.type.rows != "E":
            raise ValueError(f"{self._prefix}{name}: its input has no rows of experts")
        experts, weight = self._experts(routing, name, n)
        return self._add("expert_sum", (x, routing), ValueType("T", (Columns(n),)), (weight,), experts=experts)

    def gate_rows(self, x: Value, gate: Value) -> Value:
        """x · sigmoid(gate[.,1])."""
        return self._add("gate_rows", (x, gate), x.type)

    def _experts(self, routing: Value, name: str, n: int) -> tuple[int, Weight]:
        """How many experts there are, and the matrix with the rows of all of them."""
        node = self._producer(routing)
        if node.op != "route":
            raise ValueError(f"{self._prefix}{name}: a {node.op} chooses no experts")
        experts = int(node.attr("experts"))
        tensors = [f"{self._prefix}{name.format(expert)}.weight" for expert in range(experts)]
        sources = tuple(Source(tensor, Columns(n), (0, n)) for tensor in tensors)
        return experts, Weight("matrix", self._prefix + name.format("*"), sources)

    @abstractmethod
    def _producer(self, value: Value) -> Node:
        """The node that computes a value."""

    @abstractmethod
    def _add(
        self,
        op: str,
        inputs: tuple[Value, ...],
        type: ValueType,
        weights: tuple[Weight | None, ...] = (),
        **attrs: float,
    ) -> Value: ...
