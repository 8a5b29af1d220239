"""ChatGLM-6B, the first ChatGLM: a prompt that sees itself as a whole, and positions on two axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._config import DecoderConfig

# The residual's factor is that of 28 layers, whatever num_layers says.
ALPHA = math.sqrt(2 * 28)


@dataclass(frozen=True, kw_only=True)
class ChatGLM1Config(DecoderConfig):
    """The family's own keys stand for the usual ones: num_layers, inner_hidden_size, max_sequence_length.

    The prompt's context ends before `bos_token_id`; the answer fills the gap at gmask_token_id or mask_token_id.
    """

    family: ClassVar[str] = "chatglm1"
    whole_prompts: ClassVar[bool] = True

    bos_token_id: int
    gmask_token_id: int
    mask_token_id: int

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        heads = read.attention_heads(config, key_value="num_attention_heads", where=where)
        if heads.size % 4:
            raise ModelError(f"{where}: heads have {heads.size} columns, two axes need a multiple of 4")
        if not read.boolean(config, "position_encoding_2d", True, where=where):
            raise ModelError(f"{where}: position_encoding_2d is false; only positions on two axes are supported")
        if config.get("pre_seq_len") is not None:
            raise ModelError(f"{where}: pre_seq_len is set; prefixes of P-tuning are not supported, merge or drop them")
        layers = read.positive_int(config, "num_layers", maximum=4096, where=where)
        axis = heads.size // 4
        return {
            "vocab_size": read.positive_int(config, "vocab_size", where=where),
            "hidden_size": read.positive_int(config, "hidden_size", where=where),
            "intermediate_size": read.positive_int(config, "inner_hidden_size", where=where),
            "num_hidden_layers": layers,
            "num_attention_heads": heads.query,
            "num_key_value_heads": heads.query,
            "head_dim": heads.size,
            "hidden_act": "gelu_tanh",
            "rms_norm_eps": read.positive_float(config, "layernorm_epsilon", 1e-5, where=where),
            "max_position_embeddings": read.positive_int(config, "max_sequence_length", 2048, where=where),
            "tie_word_embeddings": read.boolean(config, "tie_word_embeddings", False, where=where),
            "sliding_window": None,
            "layer_types": ("full_attention",) * layers,
            "rope": {"rope_type": "two_axes", "rope_theta": 10000.0, "mrope_section": [axis, axis, 0]},
            "bos_token_id": read.natural_int(config, "bos_token_id", 150004, where=where),
            "gmask_token_id": read.natural_int(config, "gmask_token_id", 150001, where=where),
            "mask_token_id": read.natural_int(config, "mask_token_id", 150000, where=where),
        }


def chatglm1(g: Graph, c: ChatGLM1Config) -> Value:
    """Layer norms whose output is also the residual: x = a · alpha + attention(a), x = m · alpha + mlp(m)."""
    g.prefix(begin=c.bos_token_id, gaps=(c.gmask_token_id, c.mask_token_id))
    table = g.rope_table(c.rope, c.head_dim, c.max_position_embeddings)
    x = g.embed("transformer.word_embeddings", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"transformer.layers.{i}"):
            a = g.layer_norm(x, "input_layernorm", c.rms_norm_eps)
            with g.scope("attention"):
                q, k, v = (
                    g.linear(a, "query_key_value", heads=(c.num_attention_heads, c.head_dim), rows=rows, bias=True)
                    for rows in qkv_rows(c.num_attention_heads, c.head_dim)
                )
                y = g.attention(g.rope(q, table), g.rope(k, table), v)
                x = a * ALPHA + g.linear(y, "dense", c.hidden_size, bias=True)
            m = g.layer_norm(x, "post_attention_layernorm", c.rms_norm_eps)
            with g.scope("mlp"):
                y = g.act(g.linear(m, "dense_h_to_4h", c.intermediate_size, bias=True), c.hidden_act)
                x = m * ALPHA + g.linear(y, "dense_4h_to_h", c.hidden_size, bias=True)
    x = g.layer_norm(x, "transformer.final_layernorm", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="transformer.word_embeddings" if c.tie_word_embeddings else None)


def qkv_rows(heads: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of query_key_value that make up q, k and v: it holds q, k, v of the first head, then of the second …

    Each half of a head is rotated by an axis of its own, as halves: quarters 1 with 2 and 3 with 4. Here q and k come
    with quarters 2 and 3 exchanged, so that all of it is one rotation as halves; their products are the same.
    """
    q, k, v = np.arange(3 * heads * size).reshape(heads, 3, size).swapaxes(0, 1)
    quarters = np.arange(size).reshape(4, -1)[[0, 2, 1, 3]].reshape(-1)
    return q[:, quarters].reshape(-1), k[:, quarters].reshape(-1), v.reshape(-1)
