"""Qwen1.5-MoE and Qwen2-MoE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import attention, gated_mlp
from dashinfer_lite.model_defs._experts import QwenMoeConfig, expert_mlp


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(QwenMoeConfig):
    """All tokens also have a shared expert of `shared_expert_intermediate_size`, with a gate of its own."""

    family: ClassVar[str] = "qwen2_moe"

    shared_expert_intermediate_size: int
    qkv_bias: bool

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        return super()._values(config, where) | {
            "shared_expert_intermediate_size": read.positive_int(
                config, "shared_expert_intermediate_size", where=where
            ),
            "qkv_bias": read.boolean(config, "qkv_bias", True, where=where),
        }


def qwen2_moe(g: Graph, c: Qwen2MoeConfig) -> Value:
    """The Qwen2 decoder; in sparse layers x += sigmoid(gate(h)) · shared(h) + Σ weight · expert(h)."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                x = x + attention(g, h, c, i, bias=c.qkv_bias)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                if not c.has_experts(i):
                    x = x + gated_mlp(g, h, c)
                    continue
                gate = g.linear(h, "shared_expert_gate", 1)
                with g.scope("shared_expert"):
                    x = x + g.gate_rows(gated_mlp(g, h, c, inner=c.shared_expert_intermediate_size), gate)
                experts, chosen, inner = c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size
                x = x + expert_mlp(g, h, experts, chosen, inner, c.hidden_act, renormalize=c.norm_topk_prob)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
