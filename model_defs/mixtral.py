"""Mixtral."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import attention
from dashinfer_lite.model_defs._config import DecoderConfig
from dashinfer_lite.model_defs._experts import MAX_EXPERTS, expert_mlp

MATRICES = ("w1", "w3", "w2")  # gate, up, down


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(DecoderConfig):
    """Every layer has `num_local_experts` MLPs of `intermediate_size`; the weights of the chosen ones add up to 1."""

    family: ClassVar[str] = "mixtral"

    num_local_experts: int
    num_experts_per_tok: int

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        experts = read.positive_int(config, "num_local_experts", 8, maximum=MAX_EXPERTS, where=where)
        return super()._values(config, where) | {
            "num_local_experts": experts,
            "num_experts_per_tok": read.positive_int(config, "num_experts_per_tok", 2, maximum=experts, where=where),
        }


def mixtral(g: Graph, c: MixtralConfig) -> Value:
    """The Mistral decoder with experts in place of the MLP."""
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                x = x + attention(g, h, c, i)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("block_sparse_moe"):
                experts, chosen, inner = c.num_local_experts, c.num_experts_per_tok, c.intermediate_size
                x = x + expert_mlp(g, h, experts, chosen, inner, c.hidden_act, renormalize=True, names=MATRICES)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="model.embed_tokens" if c.tie_word_embeddings else None)
