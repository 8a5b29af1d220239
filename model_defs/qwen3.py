"""Qwen3, dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import attention, gated_mlp
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    """`attention_bias` covers q, k, v and o; sliding windows are as in Qwen2."""

    family: ClassVar[str] = "qwen3"

    attention_bias: bool = False

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        bias = read.boolean(config, "attention_bias", False, where=where)
        return super()._values(config, where) | {"attention_bias": bias}


def qwen3(g: Graph, c: Qwen3Config) -> Value:
    """The Llama decoder with an RMS norm on each head of q and k before the rotation."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                x = x + attention(g, h, c, i, bias=c.attention_bias, o_bias=c.attention_bias, qk_norm=True)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                x = x + gated_mlp(g, h, c)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
