"""Passes change the program, never the result: every subset of them computes the same."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, LIMITS

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.passes import PASS_NAMES, run_passes, select_passes
from dashinfer_lite.graph.program import Program

SUBSETS = [subset for n in range(len(PASS_NAMES) + 1) for subset in combinations(PASS_NAMES, n)]


def ops(program: Program) -> Counter[str]:
    return Counter(instr.op for instr in (*program.body, *program.tail))


def test_every_subset_computes_the_same(compute: Any, plain: np.ndarray) -> None:
    assert np.abs(plain).max() > 0.5
    for subset in SUBSETS:
        np.testing.assert_allclose(compute(subset)[0], plain, atol=2e-5, rtol=0, err_msg=str(subset))


@pytest.mark.parametrize("align", [16, 32])
@pytest.mark.parametrize("passes", [(), PASS_NAMES, *((name,) for name in PASS_NAMES)], ids=str)
def test_padding_changes_nothing(compute: Any, plain: np.ndarray, passes: tuple[str, ...], align: int) -> None:
    np.testing.assert_allclose(compute(passes, align=align)[0], plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("passes", [(), PASS_NAMES, *((name,) for name in PASS_NAMES)], ids=str)
def test_bf16_rounds_at_the_same_places_with_and_without_passes(compute: Any, passes: tuple[str, ...]) -> None:
    plain, _ = compute((), dtype="bf16", kv_dtype="bf16")
    np.testing.assert_allclose(compute(passes, dtype="bf16", kv_dtype="bf16")[0], plain, atol=2e-5, rtol=0)


def test_tail_rows_moves_the_norm_behind_the_gather(compute: Any) -> None:
    without, within = compute(())[1], compute(("tail_rows",))[1]
    head = ["hidden", "linear", "scale", "softcap", "sample"]
    assert [instr.op for instr in without.tail] == ["gather_rows", *head]
    assert [instr.op for instr in within.tail] == ["gather_rows", "rms_norm", *head]


def test_stack_qkv_makes_one_linear_of_three(compute: Any) -> None:
    without, within = compute(())[1], compute(("stack_qkv",))[1]
    assert ops(without)["linear"] - ops(within)["linear"] == 2 * CONFIG.layers
    (names,) = {w.name for w in within.weights if "{" in w.name and ".0." in w.name and w.kind == "linear"}
    assert names == "layers.0.{q,k,v}"


def test_stack_gate_up_swallows_activation_and_product(compute: Any) -> None:
    without, within = ops(compute(())[1]), ops(compute(("stack_gate_up",))[1])
    assert without - within == Counter(linear=CONFIG.layers, act=CONFIG.layers, mul=CONFIG.layers)


def test_act_epilogue_swallows_the_activation(compute: Any) -> None:
    assert ops(compute(("act_epilogue",))[1])["act"] == 0


def test_residual_epilogue_swallows_every_addition(compute: Any) -> None:
    assert ops(compute(())[1])["add"] == 3 * CONFIG.layers
    assert ops(compute(("residual_epilogue",))[1])["add"] == 0


def test_rope_into_kv_leaves_one_instruction(compute: Any) -> None:
    within = ops(compute(("rope_into_kv",))[1])
    assert within["rope_kv"] == CONFIG.layers
    assert within["rope"] == within["head_norm"] == within["kv_write"] == 0


def test_drop_dead_removes_what_nobody_reads() -> None:
    g = Graph()
    x = g.embed("embed", 8, 4)
    g.linear(x, "unused", 4)
    g.logits(x, "head", 8)
    trace = g.trace()
    assert "linear" in [node.op for node in trace.nodes[:2]]
    kept = [node.op for node in run_passes(trace, ["drop_dead"]).nodes]
    assert kept == ["embed", "gather_rows", "hidden", "linear", "sample"]


def test_a_value_that_is_read_twice_is_not_swallowed() -> None:
    """The gate, the activation and the projected value have other readers: fusing would lose or repeat them."""
    g = Graph()
    x = g.embed("embed", 8, 4)
    gate, up = g.linear(x, "gate", 4), g.linear(x, "up", 4)
    act = g.silu(gate)
    x = x + g.linear(act * up, "down", 4) + gate + act
    g.logits(x, "head", 8)
    before = Counter(node.op for node in g.trace().nodes)
    after = Counter(node.op for node in run_passes(g.trace(), ["stack_gate_up", "act_epilogue"]).nodes)
    assert after == before


def test_a_linear_that_is_read_twice_is_not_computed_twice() -> None:
    g = Graph()
    x = g.embed("embed", 8, 4)
    y = g.linear(x, "w", 4)
    g.logits((x + y) + y, "head", 8)
    assert sum(node.op == "linear" for node in run_passes(g.trace(), PASS_NAMES).nodes) == 2


def attention_of(kind: str, g: Graph, c: Any) -> None:
    """One attention layer in which q and k are treated differently, or someone else reads what lies between."""
    x = g.embed("embed", c.vocab, c.hidden)
    tables = [g.rope_table({"rope_type": "default", "rope_theta": theta}, c.size, 64) for theta in (100.0, 30.0)]
    q, k, v = (g.linear(x, name, heads=(c.heads, c.size)) for name in "qkv")
    normed_q = g.head_norm(q, "q_norm", c.eps)
    normed_k = g.head_norm(k, "k_norm", 0.5 if kind == "epsilon" else c.eps)
    turned_q = g.rope(normed_q, tables[0])
    turned_k = g.rope(normed_k, tables[kind == "table"], interleaved=kind == "style")
    y = g.attention(turned_q, turned_k, v)
    readers = {
        "normed q": normed_q,
        "normed k": normed_k,
        "turned q": turned_q,
        "turned k": turned_k,
        "raw k": k,
        "v": v,
    }
    if kind in readers:
        y = y + readers[kind]
    g.logits(g.rms_norm(g.linear(y, "o", c.hidden), "norm", c.eps), "head", c.vocab)


@pytest.mark.parametrize(
    "kind", ["alike", "table", "style", "epsilon", "normed q", "normed k", "turned q", "turned k", "raw k", "v"]
)
def test_rope_into_kv_takes_only_what_is_alike_and_read_once(compute: Any, kind: str) -> None:
    def model(g: Graph, c: Any) -> None:
        attention_of(kind, g, c)

    (wanted, _), (got, program) = compute((), model), compute(PASS_NAMES, model)
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)
    assert (ops(program)["rope_kv"] == 1) == (kind in ("alike", "raw k"))


def test_selection_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_passes() == PASS_NAMES
    assert select_passes(["drop_dead", "tail_rows"]) == ("tail_rows", "drop_dead")
    for value, wanted in {
        "none": (),
        "all": PASS_NAMES,
        "rope_into_kv,stack_qkv": ("stack_qkv", "rope_into_kv"),
        "-tail_rows, -drop_dead": tuple(n for n in PASS_NAMES if n not in ("tail_rows", "drop_dead")),
    }.items():
        monkeypatch.setenv("DASHINFER_PASSES", value)
        assert select_passes() == wanted
    for value in ("everything", "-everything"):
        monkeypatch.setenv("DASHINFER_PASSES", value)
        with pytest.raises(ValueError, match="everything"):
            select_passes()
    with pytest.raises(ValueError, match="stack_kv"):
        select_passes(["stack_kv"])


def test_dump_is_a_table_for_people(compute: Any) -> None:
    text = compute(PASS_NAMES)[1].dump()
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["#", "op", "out"]
    assert any("attention" in line and "Hq=4" in line and "f32[T,24]" in line for line in lines)
    assert any("silu·up" in line and "layers.0.{gate,up}:f32[64,24]" in line for line in lines)
    assert "-- tail: tiles of 5 logit rows --" in lines
    assert any(line.startswith("kv cache    8 blocks of 8 tokens: 2 layers x 2 heads x 6, f32") for line in lines)


def test_an_unknown_cache_type_is_refused() -> None:
    with pytest.raises(ValueError, match="KV cache"):
        build(
            lambda g, c: None,
            None,
            ReferenceDevice().info,
            dtype="f32",
            kv_dtype="i8",
            limits=LIMITS,
            blocks=1,
        )
