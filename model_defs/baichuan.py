"""Baichuan 1 and 2: 7B with rotary positions, 13B with ALiBi; the second generation normalizes its head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import gated_mlp, qkv, rope_table
from dashinfer_lite.model_defs._config import DecoderConfig

BAICHUAN2_VOCABULARY = 125696


@dataclass(frozen=True, kw_only=True)
class BaichuanConfig(DecoderConfig):
    """No key says which of the four models it is: `rotary` and `normalize_lm_head` are found out.

    7B is spelled BaiChuan, has 4096 columns or gives max_position_embeddings; 13B gives model_max_length alone.
    """

    family: ClassVar[str] = "baichuan"

    rotary: bool
    normalize_lm_head: bool

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        values = super()._values(config, where)
        length = read.either(config, "max_position_embeddings", "model_max_length")
        spelled = config.get("architectures") or [""]
        is_second = values["vocab_size"] == BAICHUAN2_VOCABULARY
        return values | {
            "max_position_embeddings": read.positive_int(config, length, 4096, where=where),
            "rotary": spelled[0] == "BaiChuanForCausalLM"
            or values["hidden_size"] == 4096
            or config.get("max_position_embeddings") is not None,
            "normalize_lm_head": read.boolean(config, "normalize_lm_head", is_second, where=where),
        }


def baichuan(g: Graph, c: BaichuanConfig) -> Value:
    """The Llama decoder with q, k and v in W_pack; without rotation, keys count less the farther they are."""
    slopes = None if c.rotary else alibi_slopes(c.num_attention_heads)
    x = g.embed("model.embed_tokens", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"model.layers.{i}"):
            h = g.rms_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("self_attn"):
                q, k, v = qkv(g, h, c, fused="W_pack")
                if c.rotary:
                    q, k = (g.rope(part, rope_table(g, c, i)) for part in (q, k))
                x = x + g.linear(g.attention(q, k, v, alibi=slopes), "o_proj", c.hidden_size)
            h = g.rms_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                x = x + gated_mlp(g, h, c)
    x = g.rms_norm(x, "model.norm", c.rms_norm_eps)
    tied = "model.embed_tokens" if c.tie_word_embeddings else None
    return g.logits(x, "lm_head", c.vocab_size, tied=tied, normalize=c.normalize_lm_head)


def alibi_slopes(heads: int) -> np.ndarray:
    """[heads]: 2^(-8/n), its square, its cube … for a power of two n (ALiBi, arXiv:2108.12409).

    Other numbers of heads take those of the power below, then every second one of the power above.
    """
    power = 1 << int(math.log2(heads))
    below, above = (2.0 ** (-8.0 / n * np.arange(1, n + 1)) for n in (power, 2 * power))
    return np.concatenate([below, above[::2][: heads - power]]).astype(np.float32)
