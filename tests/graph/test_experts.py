"""Mixtures of experts in the compiler: what passes make of them, where their rows lie, and what the builder refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, LIMITS, Weights, run

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.graph.ops import ACTIVATIONS, GATED
from dashinfer_lite.graph.passes import PASS_NAMES
from dashinfer_lite.graph.program import Instr, Program
from dashinfer_lite.graph.quant import QuantPolicy, matrix_specs

EXPERTS, CHOSEN, INNER = 5, 2, 20


def mixture(g: Graph, x: Value, c: Any) -> Value:
    """A router and experts with matrices "up.3" and the like."""
    routing = g.route(g.linear(x, "router", EXPERTS), CHOSEN, renormalize=True, scale=1.5)
    gate = g.expert_linear(x, routing, "gate.{}", INNER)
    up = g.expert_linear(x, routing, "up.{}", INNER)
    return g.expert_sum(g.silu(gate) * up, routing, "down.{}", c.hidden)


def model(g: Graph, c: Any) -> None:
    """Two layers: experts alone, and beside a shared MLP that has a gate."""
    x = g.embed("embed", c.vocab, c.hidden)
    for i in range(2):
        with g.scope(f"layers.{i}"):
            h = g.rms_norm(x, "norm", c.eps)
            x = x + mixture(g, h, c)
            if i:
                x = g.gate_rows(g.linear(h, "shared", c.hidden), g.linear(h, "shared_gate", 1)) + x
    q = g.linear(x, "q", heads=(1, 6))
    g.logits(x + g.linear(g.attention(q, q, q), "o", c.hidden), "head", c.vocab)


def program_of(passes: Any = None, **options: Any) -> Program:
    defaults: dict[str, Any] = {"dtype": "bf16", "kv_dtype": "bf16", "limits": LIMITS, "blocks": 4}
    device = ReferenceDevice(col_align=32, head_align=32)
    return build(model, CONFIG, device.info, passes=passes, **{**defaults, **options})


def instrs(program: Program, op: str) -> list[Instr]:
    return [instr for instr in program.body if instr.op == op]


@pytest.mark.parametrize("quant", [None, "a16w8", "a16w4-g32"])
@pytest.mark.parametrize("align", [1, 32])
def test_any_passes_compute_the_same(align: int, quant: str | None) -> None:
    policy = QuantPolicy.parse(quant)
    wanted, _ = run(model, CONFIG, Weights(), (), quant=policy)
    for passes in [(name,) for name in PASS_NAMES] + [tuple(n for n in PASS_NAMES if n != name) for name in PASS_NAMES]:
        got, _ = run(model, CONFIG, Weights(), passes, align=align, quant=policy)
        np.testing.assert_allclose(got, wanted, atol=(5e-5 if quant else 5e-6) * np.abs(wanted).max(), rtol=0)


def test_gate_and_up_are_one_and_sums_take_the_residual() -> None:
    plain, fused = program_of(()), program_of()
    assert [len(instrs(plain, op)) for op in ("expert_linear", "expert_sum", "act", "mul", "add")] == [4, 2, 2, 2, 4]
    assert [len(instrs(fused, op)) for op in ("expert_linear", "expert_sum", "act", "mul", "add")] == [2, 2, 0, 0, 1]
    for linear, down in zip(instrs(fused, "expert_linear"), instrs(fused, "expert_sum"), strict=True):
        assert linear.ints == (EXPERTS, ACTIVATIONS["silu"] + GATED)
        assert down.inputs[2] == down.outputs[0], "in place"
        up, sums = fused.weights[linear.weights[0]], fused.weights[down.weights[0]]
        assert (up.n, up.k, sums.n, sums.k) == (EXPERTS * 2 * 32, CONFIG.hidden, EXPERTS * 32, INNER)
        assert [part.name.rpartition("layers.")[2][2:] for part in up.parts] == [
            *(f"gate.{e}.weight" for e in range(EXPERTS)),
            *(f"up.{e}.weight" for e in range(EXPERTS)),
        ]
        # Row r of an expert's 64: 16 of its gate, 16 of its up, and again; 20 of 32 are the model's.
        expert = up.part_index.reshape(EXPERTS, 2, 2, 16)[3]
        assert expert[0].tolist() == [[3] * 16, [8] * 16]
        assert expert[1].tolist() == [[3] * 4 + [-1] * 12, [8] * 4 + [-1] * 12]
        assert up.row_index.reshape(EXPERTS, 2, 2, 16)[3, 1, 1, :4].tolist() == [16, 17, 18, 19]


def test_layers_share_their_row_maps() -> None:
    """Models have many layers and experts: equal arrays are kept once."""
    program = program_of()
    one, other = (program.weights[instr.weights[0]] for instr in instrs(program, "expert_linear"))
    assert one.part_index is other.part_index and one.row_index is other.row_index
    assert one.parts != other.parts


def test_rows_of_experts_have_their_room() -> None:
    program = program_of()
    assert program.limits.experts_per_token == CHOSEN
    assert [program.limits.capacity(rows) for rows in ("T", "R", "E")] == [32, 5, 64]
    slot = program.slots[instrs(program, "expert_linear")[0].outputs[0]]
    assert (slot.rows, slot.dtype, slot.cols) == ("E", "bf16", 32)
    assert "bf16[E,32]" in program.dump()


def test_routers_and_gates_are_never_quantized() -> None:
    """Whatever they are called: what decides is what reads them."""
    specs = matrix_specs(model, CONFIG, QuantPolicy.parse("a16w8", overrides={"*": "a8w8"}))
    assert not any(name.endswith(("router", "shared_gate")) for name in specs)
    assert {"layers.0.gate.4", "layers.1.up.0", "layers.1.down.2", "layers.1.shared"} <= set(specs)
    program = program_of(quant=QuantPolicy.parse("a8w8"))
    kept = {weight.name for weight in program.weights if weight.kind == "linear" and weight.dtype == "bf16"}
    assert kept == {"layers.0.router", "layers.1.router", "layers.1.shared_gate"}
    for instr in instrs(program, "expert_sum"):
        planes, _, _, grid = (program.slots[at] for at in instr.inputs)
        assert (planes.dtype, planes.rows, grid.dtype, grid.rows) == ("i8", "E", "f32", "E")


def test_what_cannot_be_declared() -> None:
    g = Graph()
    x = g.embed("embed", CONFIG.vocab, CONFIG.hidden)
    logits = g.linear(x, "router", EXPERTS)
    for chosen in (0, EXPERTS + 1):
        with pytest.raises(ValueError, match=f"{chosen} of 5 experts"):
            g.route(logits, chosen)
    routing = g.route(logits, CHOSEN)
    with pytest.raises(ValueError, match="3 experts a token, where earlier layers have 2"):
        g.route(logits, 3)
    with pytest.raises(ValueError, match=r"up\.\{\}: a linear chooses no experts"):
        g.expert_linear(x, logits, "up.{}", INNER)
    with pytest.raises(ValueError, match="its input has no rows of experts"):
        g.expert_sum(x, routing, "down.{}", CONFIG.hidden)
    with pytest.raises(ValueError, match="differ in shape"):
        g.add(x, g.expert_linear(x, routing, "up.{}", CONFIG.hidden))
