"""GLM-4 and GLM-Edge in the transformers layout, and GLM-4-0414 (also Z1) with its further norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import fused_mlp, qkv, rope_table
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class GlmConfig(DecoderConfig):
    """`attention_bias` covers q, k and v; half of each head is rotated where `partial_rotary_factor` is absent."""

    family: ClassVar[str] = "glm"

    attention_bias: bool

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        return super()._values(config, where) | {
            "attention_bias": read.boolean(config, "attention_bias", False, where=where),
            "rope": read.rope_parameters(config, default_partial=0.5, where=where),
        }


@dataclass(frozen=True, kw_only=True)
class Glm4Config(GlmConfig):
    """The keys of GLM-4."""

    family: ClassVar[str] = "glm4"


def glm(g: Graph, c: GlmConfig) -> Value:
    """The Llama decoder with interleaved pairs in the first part of each head, and gate and up in one tensor."""
    return _glm(g, c)


def glm4(g: Graph, c: Glm4Config) -> Value:
    """GLM-4 with a norm behind attention and MLP as well."""
    return _glm(g, c, after="post_self_attn_layernorm", after_mlp="post_mlp_layernorm")


def _glm(g: Graph, c: GlmConfig, after: str | None = None, after_mlp: str | None = None) -> Value:
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                q, k, v = qkv(g, h, c, bias=c.attention_bias)
                q, k = (g.rope(part, rope_table(g, c, i), interleaved=True) for part in (q, k))
                y = g.linear(g.attention(q, k, v), "o_proj", c.hidden_size)
            x = x + (g.rms_norm(y, after, c.rms_norm_eps) if after else y)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                y = fused_mlp(g, h, c)
            x = x + (g.rms_norm(y, after_mlp, c.rms_norm_eps) if after_mlp else y)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
