"""Qwen1.5, Qwen2 and Qwen2.5 (also QwQ, Coder and Math), dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import attention, gated_mlp
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """`sliding_window` counts only with `use_sliding_window`, from layer `max_window_layers` on."""

    family: ClassVar[str] = "qwen2"


def qwen2(g: Graph, c: Qwen2Config) -> Value:
    """The Llama decoder with biases on q, k and v, always."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                x = x + attention(g, h, c, i, bias=True)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                x = x + gated_mlp(g, h, c)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
