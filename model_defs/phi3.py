"""Phi-3, Phi-3.5 and Phi-4, dense (mini and medium)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import fused_mlp, qkv, rope_table
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """`sliding_window` counts in every layer; `original_max_position_embeddings` stands beside the rope parameters."""

    family: ClassVar[str] = "phi3"


def phi3(g: Graph, c: Phi3Config) -> Value:
    """The Llama decoder with q, k, v in one tensor and gate, up in another."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                q, k, v = qkv(g, h, c, fused="qkv_proj")
                table = rope_table(g, c, i)
                y = g.attention(g.rope(q, table), g.rope(k, table), v, window=c.window(i))
                x = x + g.linear(y, "o_proj", c.hidden_size)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                x = x + fused_mlp(g, h, c)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
