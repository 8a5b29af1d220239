"""Llama 1, 2 and 3.x, and Mistral."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import attention, gated_mlp
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """`attention_bias` covers q, k, v and o, `mlp_bias` gate, up and down."""

    family: ClassVar[str] = "llama"

    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        return super()._values(config, where) | {
            "attention_bias": read.boolean(config, "attention_bias", False, where=where),
            "mlp_bias": read.boolean(config, "mlp_bias", False, where=where),
        }


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """Llama with a sliding window in every layer, where the file gives one, and never a bias."""

    family: ClassVar[str] = "mistral"

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        return super()._values(config, where) | {"attention_bias": False, "mlp_bias": False}


def llama(g: Graph, c: LlamaConfig) -> Value:
    """Pre-norm decoder: x += attention(norm(x)), x += mlp(norm(x)) in each layer."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                x = x + attention(g, h, c, i, bias=c.attention_bias, o_bias=c.attention_bias)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                x = x + gated_mlp(g, h, c, bias=c.mlp_bias)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)


mistral = llama
