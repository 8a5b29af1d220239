"""What the pre-norm decoder families share: the attention block and the gated MLP."""

from __future__ import annotations

import numpy as np

from dashinfer_lite.graph.builder import Graph, RowsOf, Value
from dashinfer_lite.model_defs._config import DecoderConfig


def attention(
    g: Graph, x: Value, c: DecoderConfig, layer: int, *, bias: bool = False, o_bias: bool = False, qk_norm: bool = False
) -> Value:
    """Grouped-query attention with rotary positions; the scope is the layer's self_attn."""
    table = rope_table(g, c, layer)
    q, k, v = qkv(g, x, c, bias=bias)
    if qk_norm:
        q = g.head_norm(q, "q_norm", c.rms_norm_eps)
        k = g.head_norm(k, "k_norm", c.rms_norm_eps)
    y = g.attention(g.rope(q, table), g.rope(k, table), v, window=c.window(layer))
    return g.linear(y, "o_proj", c.hidden_size, bias=o_bias)


def rope_table(g: Graph, c: DecoderConfig, layer: int) -> Value:
    """The cosines and sines of a layer."""
    rope = c.rope_of(layer)
    return g.rope_table(rope, int(c.head_dim * rope["partial_rotary_factor"]), c.max_position_embeddings)


def qkv(
    g: Graph, x: Value, c: DecoderConfig, *, fused: str | None = None, by_head: bool = False, bias: bool = False
) -> tuple[Value, Value, Value]:
    """The heads of q, k and v: from q_proj, k_proj and v_proj, or from one tensor `fused` with all their rows.

    These go q, k, v; or with `by_head` q, k and v of the first head, then those of the second, and so on.
    """
    q, kv, size = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    if fused is None:
        names, counts = ("q_proj", "k_proj", "v_proj"), (q, kv, kv)
        rows: list[RowsOf] = [None] * 3
    else:
        names, counts = (fused,) * 3, (q, kv, kv)
        stops = np.cumsum(counts) * size
        rows = [(int(stop) - count * size, int(stop)) for stop, count in zip(stops, counts, strict=True)]
        if by_head:
            rows = [part.reshape(-1) for part in np.arange(3 * q * size).reshape(q, 3, size).swapaxes(0, 1)]
    heads = [
        g.linear(x, name, heads=(count, size), bias=bias, rows=part)
        for name, count, part in zip(names, counts, rows, strict=True)
    ]
    return heads[0], heads[1], heads[2]


def gated_mlp(g: Graph, x: Value, c: DecoderConfig, *, inner: int | None = None, bias: bool = False) -> Value:
    """down(act(gate(x)) · up(x)) with `inner` columns (None: intermediate_size); the scope is the layer's mlp."""
    inner = inner or c.intermediate_size
    gate = g.linear(x, "gate_proj", inner, bias=bias)
    up = g.linear(x, "up_proj", inner, bias=bias)
    return g.linear(g.act(gate, c.hidden_act) * up, "down_proj", c.hidden_size, bias=bias)


def fused_mlp(
    g: Graph,
    x: Value,
    c: DecoderConfig,
    *,
    gate_up: str = "gate_up_proj",
    down: str = "down_proj",
    bias: bool = False,
) -> Value:
    """The gated MLP with gate's rows and then up's in one tensor; the scope is the layer's mlp."""
    n = c.intermediate_size
    gate = g.linear(x, gate_up, n, rows=(0, n), bias=bias)
    up = g.linear(x, gate_up, n, rows=(n, 2 * n), bias=bias)
    return g.linear(g.act(gate, c.hidden_act) * up, down, c.hidden_size, bias=bias)
