"""Gemma 2 and 3 (text)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import gated_mlp, qkv, rope_table
from dashinfer_lite.model_defs._config import ACTIVATIONS, DecoderConfig


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    """Caps of 0 are none; a file that lacks their keys means 50 and 30, one that says null means none.

    Heads are tied to the embedding unless the file says otherwise.
    """

    family: ClassVar[str] = "gemma2"
    context: ClassVar[int] = 8192
    caps: ClassVar[tuple[float, float]] = (50.0, 30.0)

    attention_bias: bool
    attn_logit_softcapping: float
    final_logit_softcapping: float
    query_pre_attn_scalar: float

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        if config.get("use_bidirectional_attention"):
            raise ModelError(f"{where}: use_bidirectional_attention is set; models for embeddings are not supported")
        act = read.choice(config, "hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh", where=where)
        return super()._values(config, where) | {
            "hidden_act": ACTIVATIONS[act],
            "max_position_embeddings": read.positive_int(config, "max_position_embeddings", cls.context, where=where),
            "tie_word_embeddings": read.boolean(config, "tie_word_embeddings", True, where=where),
            "attention_bias": read.boolean(config, "attention_bias", False, where=where),
            "attn_logit_softcapping": _cap(config, "attn_logit_softcapping", cls.caps[0], where),
            "final_logit_softcapping": _cap(config, "final_logit_softcapping", cls.caps[1], where),
            "query_pre_attn_scalar": read.positive_float(config, "query_pre_attn_scalar", 256.0, where=where),
        }


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """`rope` is one set of parameters for each layer type; published files give them as rope_local_base_freq for
    sliding layers, rope_theta and rope_scaling for the others.
    """

    family: ClassVar[str] = "gemma3_text"
    context: ClassVar[int] = 131072
    caps: ClassVar[tuple[float, float]] = (0.0, 0.0)

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        full = read.rope_parameters(config, default_theta=1e6, where=where)
        if "rope_type" in full:
            local = read.positive_float(config, "rope_local_base_freq", 10000.0, where=where)
            sliding = read.rope_parameters({"rope_theta": local}, where=where)
            full = {"full_attention": full, "sliding_attention": sliding}
        return super()._values(config, where) | {"rope": full}


def gemma2(g: Graph, c: Gemma2Config) -> Value:
    """Embeddings times sqrt(H), norms with 1 + w around attention and MLP, capped scores and logits."""
    return _gemma(g, c, qk_norm=False)


def gemma3(g: Graph, c: Gemma3Config) -> Value:
    """Gemma 2 with a norm on each head of q and k, and faster rotations in sliding layers."""
    return _gemma(g, c, qk_norm=True)


def _gemma(g: Graph, c: Gemma2Config, qk_norm: bool) -> Value:
    def norm(x: Value, name: str) -> Value:
        return g.rms_norm(x, name, c.rms_norm_eps, offset=1.0)

    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size, scale=g.rounded(c.hidden_size**0.5))
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = norm(x, "input_layernorm")
            with g.scope("self_attn"):
                q, k, v = qkv(g, h, c, bias=c.attention_bias)
                if qk_norm:
                    q = g.head_norm(q, "q_norm", c.rms_norm_eps, offset=1.0)
                    k = g.head_norm(k, "k_norm", c.rms_norm_eps, offset=1.0)
                q, k = (g.rope(part, rope_table(g, c, i)) for part in (q, k))
                scale, cap = c.query_pre_attn_scalar**-0.5, c.attn_logit_softcapping
                y = g.attention(q, k, v, scale=scale, softcap=cap, window=c.window(i))
                y = g.linear(y, "o_proj", c.hidden_size, bias=c.attention_bias)
            x = x + norm(y, "post_attention_layernorm")
            h = norm(x, "pre_feedforward_layernorm")
            with g.scope("mlp"):
                y = gated_mlp(g, h, c)
            x = x + norm(y, "post_feedforward_layernorm")
    x = norm(x, "model.norm")
    tied = "model.embed_tokens" if c.tie_word_embeddings else None
    return g.logits(x, "lm_head", c.vocab_size, tied=tied, softcap=c.final_logit_softcapping)


def _cap(config: read.Config, key: str, default: float, where: str) -> float:
    """A cap; 0 where the file says null."""
    if key not in config:
        return default
    return 0.0 if config[key] is None else read.positive_float(config, key, where=where)
