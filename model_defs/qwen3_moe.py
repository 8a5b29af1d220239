"""Qwen3-MoE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import attention, gated_mlp
from dashinfer_lite.model_defs._experts import QwenMoeConfig, expert_mlp


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(QwenMoeConfig):
    """`attention_bias` covers q, k, v and o; sliding windows are as in Qwen2."""

    family: ClassVar[str] = "qwen3_moe"

    attention_bias: bool

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        bias = read.boolean(config, "attention_bias", False, where=where)
        return super()._values(config, where) | {"attention_bias": bias}


def qwen3_moe(g: Graph, c: Qwen3MoeConfig) -> Value:
    """The Qwen3 decoder with experts in place of the MLP of sparse layers."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                x = x + attention(g, h, c, i, bias=c.attention_bias, o_bias=c.attention_bias, qk_norm=True)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                if not c.has_experts(i):
                    x = x + gated_mlp(g, h, c)
                    continue
                experts, chosen, inner = c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size
                x = x + expert_mlp(g, h, experts, chosen, inner, c.hidden_act, renormalize=c.norm_topk_prob)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
