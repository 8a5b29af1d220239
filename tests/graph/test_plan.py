"""Memory and barriers of random graphs: nothing needed is overwritten, nothing is read before it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, LIMITS, Weights, run
from hypothesis import given, settings
from hypothesis import strategies as st

from dashinfer_lite.graph import ops
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.graph.lower import lower
from dashinfer_lite.graph.passes import PASS_NAMES, run_passes
from dashinfer_lite.graph.plan import Layout, Plan, plan
from dashinfer_lite.graph.program import Program, Slot

KINDS = ("add", "product", "act", "scale", "norm", "linear", "residual", "gated", "attention", "reuse")
RECIPES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5)), max_size=10)
SUBSETS = st.sets(st.sampled_from(PASS_NAMES)).map(lambda names: [n for n in PASS_NAMES if n in names])

Model = Callable[[Graph, Any], None]


def model_of(recipe: list[tuple[str, int, int]]) -> Model:
    """A model whose every step takes two of the values so far."""

    def model(g: Graph, c: Any) -> None:
        values = [g.embed("embed", c.vocab, c.hidden)]
        table = g.rope_table({"rope_type": "default", "rope_theta": 100.0}, c.size, 64)
        for at, (kind, i, j) in enumerate(recipe):
            with g.scope(f"step{at}"):
                values.append(step(g, c, kind, table, values[-1 - i % len(values)], values[-1 - j % len(values)]))
        g.logits(g.rms_norm(values[-1], "norm", c.eps), "head", c.vocab)

    return model


def step(g: Graph, c: Any, kind: str, table: Value, a: Value, b: Value) -> Value:
    match kind:
        case "add":
            return a + b
        case "product":
            return g.rms_norm(a, "norm", c.eps) * g.rms_norm(b, "other", c.eps)
        case "act":
            return g.silu(a)
        case "scale":
            return a * 0.5
        case "norm":
            return g.layer_norm(a, "norm", c.eps, bias=False)
        case "linear":
            return g.linear(a, "w", c.hidden, bias=True)
        case "residual":
            return g.linear(a, "w", c.hidden) + b
        case "gated":
            return g.linear(g.silu(g.linear(a, "gate", c.inner)) * g.linear(a, "up", c.inner), "down", c.hidden) + b
    q = g.linear(a, "q", heads=(c.heads, c.size))
    k = g.linear(a, "k", heads=(c.kv_heads, c.size))
    v = g.linear(b if kind == "reuse" else a, "v", heads=(c.kv_heads, c.size))
    turned_q, turned_k = g.rope(g.head_norm(q, "q_norm", c.eps), table), g.rope(k, table)
    y = g.attention(turned_q, turned_k, v)
    if kind == "reuse":  # what the rotation overwrites is read again
        y = y + q + turned_q
    return g.linear(y, "o", c.hidden)


def planned(recipe: Any, passes: list[str], align: int, dtype: Any) -> tuple[Plan, Program]:
    g = Graph()
    model_of(recipe)(g, CONFIG)
    trace = run_passes(g.trace(), passes)
    layout = Layout(align, align)
    program = lower(trace, layout, dtype=dtype, kv_dtype="f32", limits=LIMITS, blocks=4, block_tokens=8)
    return plan(trace, layout, "bf16" if dtype == "bf16" else "f32", LIMITS), program


def share_memory(slots: tuple[Slot, ...], a: int, b: int) -> bool:
    def place(at: int) -> tuple[Slot, int, int]:
        slot = slots[at]
        return (slots[slot.parent] if slot.parent >= 0 else slot), slot.first_col, slot.first_col + slot.cols

    (root_a, first_a, stop_a), (root_b, first_b, stop_b) = place(a), place(b)
    if root_a is root_b:
        return first_a < stop_b and first_b < stop_a

    def end(root: Slot) -> int:
        rows = -(-(LIMITS.max_tokens if root.rows == "T" else LIMITS.tail_rows) // 32) * 32
        return root.offset + rows * root.cols * (2 if root.dtype == "bf16" else 4)

    return root_a.offset < end(root_b) and root_b.offset < end(root_a)


@given(RECIPES, SUBSETS, st.sampled_from([1, 32]), st.sampled_from(["f32", "bf16"]))
def test_no_value_is_overwritten_while_it_is_needed(recipe: Any, passes: list[str], align: int, dtype: Any) -> None:
    found, program = planned(recipe, passes, align, dtype)
    nodes = [*found.body, *found.tail]
    tail = range(len(found.body), len(nodes))
    born = {node.id: at for at, node in enumerate(nodes) if node.op != "view" and not node.is_effect}
    for node in nodes:
        if node.op == "view":
            born[node.id] = born[node.inputs[0]]
    for at, node in enumerate(nodes):
        for value in node.inputs if node.op != "view" else ():
            between = {*range(born[value] + 1, at)}
            if at in tail and born[value] not in tail:
                between |= {*tail}  # the tail runs again for the next tile of rows
            for other in (nodes[i] for i in between):
                written = [] if other.is_effect or other.op == "view" else [found.slot_of[other.id]]
                written += [found.slot_of[other.inputs[i]] for i in getattr(ops.OPS.get(other.op), "overwrites", ())]
                for slot in written:
                    assert not share_memory(found.slots, slot, found.slot_of[value]), (node.op, value, other.op)
    for slot in program.slots:
        assert slot.offset % 64 == 0 and slot.cols % align == 0 and slot.first_col % align == 0
        assert slot.parent < 0 or program.slots[slot.parent].parent < 0


@given(RECIPES, SUBSETS, st.sampled_from(["f32", "bf16"]))
def test_threads_meet_before_they_need_each_other(recipe: Any, passes: list[str], dtype: Any) -> None:
    _, program = planned(recipe, passes, 32, dtype)
    for instrs in (program.body, program.tail):
        assert instrs[-1].sync
        for later, instr in enumerate(instrs):
            for earlier in range(later):
                if any(instrs[i].sync for i in range(earlier, later)):
                    continue
                first = instrs[earlier]
                touched = {*first.inputs, *first.outputs}
                clash = [(a, b) for a in touched for b in instr.outputs] + [
                    (a, b) for a in first.outputs for b in instr.inputs
                ]
                assert not any(share_memory(program.slots, a, b) for a, b in clash), (first, instr)
                writes_kv = first.op in ("kv_write", "rope_kv")
                assert not (writes_kv and instr.op == "attention" and instr.ints[0] == first.ints[0])


@settings(max_examples=30)
@given(RECIPES, SUBSETS, st.sampled_from([1, 32]))
def test_random_graphs_compute_the_same_with_any_passes(recipe: Any, passes: list[str], align: int) -> None:
    model, weights = model_of(recipe), Weights()
    plain, _ = run(model, CONFIG, weights, ())
    assert np.isfinite(plain).all()
    fused, _ = run(model, CONFIG, weights, passes, align=align)
    np.testing.assert_allclose(fused, plain, atol=2e-3, rtol=0)


@settings(max_examples=30)
@given(RECIPES, SUBSETS)
def test_sharing_memory_changes_no_bit(recipe: Any, passes: list[str]) -> None:
    """The same program without any output in an input's place and without any two slots at one place."""
    model, weights = model_of(recipe), Weights()
    shared, program = run(model, CONFIG, weights, passes)
    with pytest.MonkeyPatch.context() as patch:
        for name, op in ops.OPS.items():
            patch.setitem(ops.OPS, name, replace(op, in_place=()))
        patch.setattr("dashinfer_lite.graph.plan._place", one_after_the_other)
        apart, wasteful = run(model, CONFIG, weights, passes)
    np.testing.assert_array_equal(apart, shared)
    assert wasteful.arena_bytes >= program.arena_bytes


def one_after_the_other(spans: dict[int, Any], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    offsets, total = {}, 0
    for root in spans:
        offsets[root] = total
        total += -(-sizes[root] // 64) * 64
    return offsets, total


def test_activations_of_all_layers_share_memory() -> None:
    one, many = (planned([("gated", 0, 0)] * layers, list(PASS_NAMES), 32, "bf16")[1] for layers in (2, 9))
    assert one.arena_bytes == many.arena_bytes


def test_head_align_must_be_a_multiple_of_col_align() -> None:
    with pytest.raises(ValueError, match="col_align"):
        Layout(32, 16)
