"""Passes: each turns a trace into a faster one that computes the same.

Every pass can be switched off and every subset in the order of `PASSES` is valid; see the README for how to add one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from dashinfer_lite.graph.ops import ACT_NONE, GATED, OPS, PRODUCTS
from dashinfer_lite.graph.trace import Node, Source, Trace, ValueType, Weight

if TYPE_CHECKING:
    from dashinfer_lite.graph.quant import QuantSpec

ENVIRONMENT: Final = "DASHINFER_PASSES"


def tail_rows(trace: Trace) -> Trace:
    """Gathers the logit rows as early as possible: the final norm and the head then run on R rows, not on T."""
    while (moved := _gather_earlier(trace)) is not None:
        trace = moved
    return trace


def stack_qkv(trace: Trace) -> Trace:
    """One linear in place of several that project the same input to heads; the old values are views of its columns.

    Only matrices that are quantized alike become one.
    """
    groups: dict[tuple[int, QuantSpec | None], list[Node]] = {}
    for node in trace.nodes:
        matrix = node.weight(0)
        if _is_plain_linear(node) and node.type is not None and node.type.heads is not None and matrix is not None:
            groups.setdefault((node.inputs[0], matrix.quant), []).append(node)
    nodes = list(trace.nodes)
    fresh = trace.next_id()
    for group in groups.values():
        if len(group) < 2 or len({node.weights[0].normalize for node in group if node.weights[0]}) > 1:
            continue
        stacked = _stacked(group, fresh)
        views = {node.id: Node(node.id, "view", (fresh,), node.type, attrs={"part": i}) for i, node in enumerate(group)}
        at = nodes.index(group[0])
        nodes = [views.get(node.id, node) for node in nodes]
        nodes.insert(at, stacked)
        fresh += 1
    return trace.with_nodes(nodes)


def stack_gate_up(trace: Trace) -> Trace:
    """act(gate(x)) · up(x) becomes one linear whose rows alternate in groups of 16 and whose epilogue multiplies.

    Experts likewise.
    """
    producers, uses, consumers = trace.producers(), trace.uses(), trace.consumers()

    def once(value: int) -> Node | None:
        return producers[value] if uses[value] == 1 else None

    def fused(node: Node) -> Node:
        # Only products know how a gated value is padded.
        if node.op != "mul" or any(user.op not in PRODUCTS for user in consumers.get(node.id, [])):
            return node
        for a, b in (node.inputs, node.inputs[::-1]):
            act, up = once(a), once(b)
            gate = once(act.inputs[0]) if act is not None and act.op == "act" else None
            if act is not None and gate is not None and up is not None and _is_pair(gate, up):
                return _gated(node, int(act.attr("act")), gate, up)
        return node

    return drop_dead(trace.with_nodes([fused(node) for node in trace.nodes]))


def act_epilogue(trace: Trace) -> Trace:
    """act(linear(x)) becomes one linear."""
    producers, uses = trace.producers(), trace.uses()

    def fused(node: Node) -> Node:
        linear = producers[node.inputs[0]] if node.op == "act" else None
        if linear is None or not _is_plain_linear(linear) or uses[linear.id] > 1:
            return node
        return replace(linear, id=node.id, attrs={**linear.attrs, "act": node.attr("act")})

    return drop_dead(trace.with_nodes([fused(node) for node in trace.nodes]))


def residual_epilogue(trace: Trace) -> Trace:
    """a + linear(x) becomes one linear that adds a, and so does a + expert_sum(x)."""
    producers, uses = trace.producers(), trace.uses()

    def fused(node: Node) -> Node:
        if node.op != "add" or node.inputs[0] == node.inputs[1]:
            return node
        for residual, value in (node.inputs, node.inputs[::-1]):
            linear = producers[value]
            if linear.op not in PRODUCTS or uses[value] > 1:
                continue
            if OPS[linear.op].inputs[len(linear.inputs) :][:1] == ("residual?",):
                return replace(linear, id=node.id, inputs=(*linear.inputs, residual))
        return node

    return drop_dead(trace.with_nodes([fused(node) for node in trace.nodes]))


def rope_into_kv(trace: Trace) -> Trace:
    """Head norms, rope of q and k and the KV write become one instruction that walks the token rows once."""
    producers, uses = trace.producers(), trace.uses()
    position = {node.id: at for at, node in enumerate(trace.nodes)}
    queries = {node.attr("layer"): node for node in trace.nodes if node.op == "attention"}
    merged: dict[int, Node] = {}
    gone: set[int] = set()
    for write in [node for node in trace.nodes if node.op == "kv_write"]:
        attention = queries.get(write.attr("layer"))
        if attention is None or uses[write.inputs[1]] > 1:
            continue
        q, k = (_rope_chain(value, producers, uses) for value in (attention.inputs[0], write.inputs[0]))
        if q is None or k is None or not _rotate_alike(q, k) or position[q.rope.id] > position[write.id]:
            continue
        merged[write.id] = _rope_kv(attention, q, k, write.inputs[1])
        gone.update(node.id for chain in (q, k) for node in (chain.norm, chain.rope) if node is not None)
    return trace.with_nodes([merged.get(node.id, node) for node in trace.nodes if node.id not in gone])


def drop_dead(trace: Trace) -> Trace:
    """Removes what no effect depends on."""
    live: set[int] = set()
    kept = []
    for node in reversed(trace.nodes):
        if node.is_effect or node.op == "rope_kv" or node.id in live:
            kept.append(node)
            live.update(node.inputs)
    return trace.with_nodes(kept[::-1])


PASSES: Final[tuple[tuple[str, Callable[[Trace], Trace]], ...]] = (
    ("tail_rows", tail_rows),
    ("stack_qkv", stack_qkv),
    ("stack_gate_up", stack_gate_up),
    ("act_epilogue", act_epilogue),
    ("residual_epilogue", residual_epilogue),
    ("rope_into_kv", rope_into_kv),
    ("drop_dead", drop_dead),
)
PASS_NAMES: Final = tuple(name for name, _ in PASSES)


def select_passes(names: Iterable[str] | None = None) -> tuple[str, ...]:
    """The passes to run: `names`, else those of the environment variable DASHINFER_PASSES, else all.

    The variable holds "all", "none", names to run ("tail_rows,stack_qkv") or names to leave out ("-rope_into_kv").
    """
    if names is None:
        words = [word.strip() for word in os.environ.get(ENVIRONMENT, "all").split(",") if word.strip()]
        if words in (["all"], ["none"]):
            return PASS_NAMES if words == ["all"] else ()
        left_out = {word[1:] for word in words if word.startswith("-")}
        wanted = {word for word in words if not word.startswith("-")} or {*PASS_NAMES} - left_out
        names = wanted | left_out if left_out - {*PASS_NAMES} else wanted - left_out
    wanted = set(names)
    if unknown := wanted - {*PASS_NAMES}:
        raise ValueError(f"unknown passes {', '.join(sorted(unknown))}; there are {', '.join(PASS_NAMES)}")
    return tuple(name for name in PASS_NAMES if name in wanted)


def run_passes(trace: Trace, names: Iterable[str]) -> Trace:
    """Runs the named passes in the order of PASSES."""
    wanted = set(names)
    for name, function in PASSES:
        if name in wanted:
            trace = function(trace)
            trace.check()
    return trace


# ---- tail_rows -----------------------------------------------------------------------------------------------------


def _gather_earlier(trace: Trace) -> Trace | None:
    """Swaps the gather with the node before it, where that works row by row on one value.

    None at the end of the road.
    """
    producers, uses = trace.producers(), trace.uses()
    for gather in trace.nodes:
        node = producers[gather.inputs[0]] if gather.op == "gather_rows" else None
        if node is None or node.type is None or gather.type is None or len(node.inputs) != 1 or uses[node.id] > 1:
            continue
        if node.op == "view" or not OPS[node.op].row_wise or OPS[node.op].overwrites:
            continue
        gathered = Node(
            node.id, "gather_rows", node.inputs, replace(producers[node.inputs[0]].type or node.type, rows="R")
        )
        moved = replace(node, id=gather.id, inputs=(node.id,), type=replace(node.type, rows="R"))
        swap = {node.id: (), gather.id: (gathered, moved)}
        return trace.with_nodes([new for old in trace.nodes for new in swap.get(old.id, (old,))])
    return None


# ---- stacked linears -----------------------------------------------------------------------------------------------


def _is_plain_linear(node: Node) -> bool:
    return node.op == "linear" and len(node.inputs) == 1 and node.attr("act") == ACT_NONE


def _is_plain_product(node: Node) -> bool:
    return _is_plain_linear(node) or (node.op == "expert_linear" and node.attr("act") == ACT_NONE)


def _stacked(group: list[Node], id: int) -> Node:
    parts = tuple(part for node in group if node.type is not None for part in node.type.parts)
    first = group[0]
    return replace(
        first, id=id, type=ValueType(first.type.rows if first.type else "T", parts), weights=_joined(group, False)
    )


def _joined(group: list[Node], gated: bool) -> tuple[Weight, ...]:
    """The matrix (and, where any node has one, the bias) with the rows of all nodes."""
    matrices = [node.weights[0] for node in group]
    biases = [node.weight(1) for node in group]
    name = _joined_name([weight.name for weight in matrices if weight])
    sources = tuple(source for weight in matrices if weight for source in weight.sources)
    first = matrices[0]
    if first is None:
        raise ValueError("a linear without a matrix")
    matrix = replace(first, name=name, sources=sources, gated=gated)
    if not any(biases):
        return (matrix,)
    rows: list[Source] = []
    for weight, bias in zip(matrices, biases, strict=True):
        rows += (
            bias.sources if bias else [Source(None, source.columns) for source in (weight.sources if weight else ())]
        )
    return matrix, Weight("vector", f"{name}.bias", tuple(rows), gated=gated)


def _joined_name(names: list[str]) -> str:
    """model.layers.0.self_attn.{q_proj,k_proj,v_proj}"""
    prefix = names[0].rpartition(".")[0]
    last = [name.rpartition(".")[2] for name in names]
    return f"{prefix}.{{{','.join(dict.fromkeys(last))}}}" if len({*last}) > 1 else names[0]


def _is_pair(gate: Node, up: Node) -> bool:
    if gate.id == up.id or not _is_plain_product(gate) or not _is_plain_product(up):
        return False
    a, b = gate.weights[0], up.weights[0]
    one_part = gate.type is not None and len(gate.type.parts) == 1 and gate.type.parts[0].unit == "columns"
    return (
        one_part
        and gate.inputs == up.inputs
        and gate.type == up.type
        and a is not None
        and b is not None
        and a.normalize == b.normalize
        and a.quant == b.quant
    )


def _gated(mul: Node, act: int, gate: Node, up: Node) -> Node:
    (part,) = mul.type.parts if mul.type else ()
    type = ValueType(mul.type.rows if mul.type else "T", (replace(part, unit="gates"),))
    return replace(
        gate, id=mul.id, type=type, weights=_joined([gate, up], True), attrs={**gate.attrs, "act": act + GATED}
    )


# ---- rope_into_kv --------------------------------------------------------------------------------------------------


class _Chain(NamedTuple):
    """What happens to q or k between the projection and the cache."""

    raw: int
    norm: Node | None
    rope: Node


def _rope_chain(value: int, producers: dict[int, Node], uses: Counter[int]) -> _Chain | None:
    """The chain that ends in `value`, if nothing else reads what lies between."""
    rope = producers[value]
    if rope.op != "rope" or uses[value] > 1 or uses[rope.inputs[0]] > 1:
        return None
    norm = producers[rope.inputs[0]]
    return _Chain(norm.inputs[0], norm, rope) if norm.op == "head_norm" else _Chain(norm.id, None, rope)


def _rotate_alike(q: _Chain, k: _Chain) -> bool:
    same_eps = q.norm is None or k.norm is None or q.norm.attr("eps") == k.norm.attr("eps")
    return same_eps and q.rope.inputs[1] == k.rope.inputs[1] and q.rope.attr("style") == k.rope.attr("style")


def _rope_kv(attention: Node, q: _Chain, k: _Chain, v: int) -> Node:
    norms = [chain.norm for chain in (q, k) if chain.norm is not None]
    attrs = {name: attention.attr(name) for name in ("layer", "Hq", "Hkv", "D")}
    attrs |= {name: q.rope.attr(name) for name in ("rotary", "style")}
    attrs["eps"] = norms[0].attr("eps") if norms else 0.0
    weights = tuple(chain.norm.weights[0] if chain.norm else None for chain in (q, k)) if norms else ()
    return Node(q.rope.id, "rope_kv", (q.raw, k.raw, v, q.rope.inputs[1]), q.rope.type, weights, attrs)
