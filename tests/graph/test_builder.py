"""What the builder records: names, fused tensors, tied heads, and clear words for a wrong model definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, Weights, run

from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.passes import PASS_NAMES

Q, KV, INNER = CONFIG.heads * CONFIG.size, CONFIG.kv_heads * CONFIG.size, CONFIG.inner


def separate(g: Graph, c: Any) -> None:
    body(g, c, lambda name: {"name": name})


def fused(g: Graph, c: Any) -> None:
    """One tensor for q, k, v, one for gate and up: rows as [start, stop)."""
    starts = {"q": ("qkv", 0, Q), "k": ("qkv", Q, Q + KV), "v": ("qkv", Q + KV, Q + 2 * KV)}
    starts |= {"gate": ("gate_up", 0, INNER), "up": ("gate_up", INNER, 2 * INNER)}
    body(g, c, lambda name: {"name": starts[name][0], "rows": starts[name][1:]})


def interleaved(g: Graph, c: Any) -> None:
    """Rows of the fused tensor go by KV head: its query heads, its key, its value."""
    body(g, c, lambda name: {"name": "by_head", "rows": HEAD_ROWS[name]} if name in HEAD_ROWS else {"name": name})


def body(g: Graph, c: Any, source: Any) -> None:
    x = g.embed("embed", c.vocab, c.hidden)
    with g.scope("block"):
        h = g.rms_norm(x, "norm", c.eps)
        q = g.linear(h, heads=(c.heads, c.size), bias=True, **source("q"))
        k = g.linear(h, heads=(c.kv_heads, c.size), bias=True, **source("k"))
        v = g.linear(h, heads=(c.kv_heads, c.size), bias=True, **source("v"))
        x = x + g.linear(g.attention(q, k, v), "o", c.hidden)
        gate, up = g.linear(x, n=c.inner, **source("gate")), g.linear(x, n=c.inner, **source("up"))
        x = g.rms_norm(x + g.linear(g.silu(gate) * up, "down", c.hidden), "last_norm", c.eps)
    g.logits(x, "head", c.vocab)


def head_rows() -> dict[str, np.ndarray]:
    group, size = CONFIG.heads // CONFIG.kv_heads, CONFIG.size
    rows = np.arange(CONFIG.kv_heads * (group + 2) * size).reshape(CONFIG.kv_heads, group + 2, size)
    parts = {"q": rows[:, :group], "k": rows[:, group], "v": rows[:, group + 1]}
    return {name: part.reshape(-1) for name, part in parts.items()}


HEAD_ROWS = head_rows()


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The separate tensors, and the same rows fused in both ways."""
    weights = Weights()
    run(separate, CONFIG, weights, ())
    tensors = weights.tensors
    for kind in ("weight", "bias"):
        qkv = [tensors[f"block.{name}.{kind}"] for name in "qkv"]
        tensors[f"block.qkv.{kind}"] = np.concatenate(qkv)
        by_head = np.zeros_like(tensors[f"block.qkv.{kind}"])
        for name, values in zip("qkv", qkv, strict=True):
            by_head[HEAD_ROWS[name]] = values
        tensors[f"block.by_head.{kind}"] = by_head
    tensors["block.gate_up.weight"] = np.concatenate([tensors[f"block.{name}.weight"] for name in ("gate", "up")])
    return weights


@pytest.mark.parametrize("align", [1, 32])
@pytest.mark.parametrize("passes", [(), PASS_NAMES], ids=["plain", "fused"])
@pytest.mark.parametrize("model", [fused, interleaved], ids=lambda model: model.__name__)
def test_fused_tensors_give_what_separate_ones_give(weights: Weights, model: Any, passes: Any, align: int) -> None:
    wanted, _ = run(separate, CONFIG, weights, ())
    got, program = run(model, CONFIG, weights, passes, align=align)
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)
    assert not any(part.name == "block.q.weight" for spec in program.weights for part in spec.parts)


def test_a_tied_head_is_one_weight(weights: Weights) -> None:
    def model(g: Graph, c: Any) -> None:
        x = g.embed("embed", c.vocab, c.hidden, scale=3.0)
        g.logits(x, "head", c.vocab, tied="embed")

    logits, program = run(model, CONFIG, weights, PASS_NAMES)
    assert [(spec.kind, spec.name) for spec in program.weights] == [("linear", "embed")]
    assert program.notes["tied"] == "head"
    table = weights.tensors["embed.weight"].astype(np.float64)
    np.testing.assert_allclose(logits[0], 3 * table[3] @ table.T, atol=1e-4)


def test_offset_and_normalize(weights: Weights) -> None:
    """1 + w norms (Gemma) and rows of length 1 (Baichuan 2's head)."""

    def model(g: Graph, c: Any) -> None:
        x = g.rms_norm(g.embed("embed", c.vocab, c.hidden), "block.norm", c.eps, offset=1.0)
        g.logits(x, "head", c.vocab, normalize=True)

    logits, _ = run(model, CONFIG, weights, PASS_NAMES, align=32)
    x = weights.tensors["embed.weight"][3].astype(np.float64)
    x = x / np.sqrt((x * x).mean() + CONFIG.eps) * (1 + weights.tensors["block.norm.weight"])
    head = weights.tensors["head.weight"].astype(np.float64)
    np.testing.assert_allclose(logits[0], x @ (head / np.linalg.norm(head, axis=1, keepdims=True)).T, atol=1e-4)


def small() -> tuple[Graph, Any]:
    g = Graph()
    return g, g.embed("embed", 8, 4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda g, x: g.embed("again", 8, 4), "embeds its tokens once"),
        (lambda g, x: g.linear(x, "w", 6, heads=(2, 4)), "6 columns"),
        (lambda g, x: g.linear(x, "w"), "columns"),
        (lambda g, x: g.linear(x, "w", heads=(1, 258)), "heads of 258"),
        (lambda g, x: g.linear(x, "w", 4, rows=(0, 5)), "rows do not give 4 columns"),
        (lambda g, x: g.linear(x, "w", 4, rows=np.arange(3)), "rows do not give 4 columns"),
        (lambda g, x: g.add(x, g.linear(x, "w", 6)), "differ in shape"),
        (lambda g, x: g.act(x, "relu"), "not one of silu"),
        (lambda g, x: g.head_norm(x, "n", 1e-5), "heads="),
        (lambda g, x: g.attention(*[g.linear(x, "w", heads=(n, 4)) for n in (3, 2, 2)]), "attention"),
        (lambda g, x: g.logits(x, "head", 8, tied="elsewhere"), "not the embedding"),
        (lambda g, x: g.logits(x, "head", 9, tied="embed"), "cannot be tied"),
        (lambda g, x: [g.logits(x, "head", 8) for _ in range(2)], "one head"),
        (lambda g, x: g.trace(), "an embedding and a head"),
        (lambda g, x: g.add(x, small()[1]), "another graph"),
    ],
)
def test_a_wrong_definition_says_what_is_wrong(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong(*small())


def test_all_layers_have_the_same_kv_heads() -> None:
    g, x = small()
    for count in (2, 4):
        q, k, v = (g.linear(x, name, heads=(count, 8)) for name in "qkv")
        if count == 2:
            g.attention(q, k, v)
    with pytest.raises(ValueError, match="layer 1 has 4 KV heads"):
        g.attention(q, k, v)


def test_equal_rope_parameters_share_a_table() -> None:
    g, _ = small()
    rope = {"rope_type": "default", "rope_theta": 100.0}
    first = g.rope_table(rope, 8, 64)
    assert g.rope_table(dict(reversed(rope.items())), 8, 64) is first
    assert g.rope_table({**rope, "rope_theta": 200.0}, 8, 64) is not first
    with pytest.raises(ValueError, match="mrope_section"):
        g.rope_table({**rope, "mrope_section": [1, 1, 1]}, 8, 64)
