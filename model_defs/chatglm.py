"""ChatGLM2, ChatGLM3 and GLM-4 in their original layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import fused_mlp, qkv, rope_table
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class ChatGLMConfig(DecoderConfig):
    """The family's own keys stand for the usual ones: num_layers, ffn_hidden_size, kv_channels, padded_vocab_size …

    Half of each head is rotated, and `rope_ratio` multiplies the base 10000.
    """

    family: ClassVar[str] = "chatglm"

    multi_query_attention: bool
    add_qkv_bias: bool
    add_bias_linear: bool
    rmsnorm: bool
    post_layer_norm: bool
    apply_residual_connection_post_layernorm: bool

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        grouped = read.boolean(config, "multi_query_attention", False, where=where)
        groups = "multi_query_group_num" if grouped else "num_attention_heads"
        heads = read.attention_heads(config, key_value=groups, size="kv_channels", where=where)
        layers = read.positive_int(config, "num_layers", maximum=4096, where=where)
        ratio = read.positive_float(config, "rope_ratio", 1.0, where=where)
        rope = {"rope_theta": 10000.0 * ratio, "partial_rotary_factor": 0.5}
        return {
            "vocab_size": read.positive_int(config, "padded_vocab_size", where=where),
            "hidden_size": read.positive_int(config, "hidden_size", where=where),
            "intermediate_size": read.positive_int(config, "ffn_hidden_size", where=where),
            "num_hidden_layers": layers,
            "num_attention_heads": heads.query,
            "num_key_value_heads": heads.key_value,
            "head_dim": heads.size,
            "hidden_act": "silu",
            "rms_norm_eps": read.positive_float(config, "layernorm_epsilon", 1e-5, where=where),
            "max_position_embeddings": read.positive_int(config, "seq_length", 2048, where=where),
            "tie_word_embeddings": read.boolean(config, "tie_word_embeddings", False, where=where),
            "sliding_window": None,
            "layer_types": ("full_attention",) * layers,
            "rope": read.rope_parameters(rope, where=where),
            "multi_query_attention": grouped,
            "add_qkv_bias": read.boolean(config, "add_qkv_bias", False, where=where),
            "add_bias_linear": read.boolean(config, "add_bias_linear", True, where=where),
            "rmsnorm": read.boolean(config, "rmsnorm", True, where=where),
            "post_layer_norm": read.boolean(config, "post_layer_norm", True, where=where),
            "apply_residual_connection_post_layernorm": read.boolean(
                config, "apply_residual_connection_post_layernorm", False, where=where
            ),
        }


def chatglm(g: Graph, c: ChatGLMConfig) -> Value:
    """A pre-norm decoder with q, k, v in one tensor, gate and up in another, and interleaved rotation."""

    def norm(x: Value, name: str) -> Value:
        return g.rms_norm(x, name, c.rms_norm_eps) if c.rmsnorm else g.layer_norm(x, name, c.rms_norm_eps)

    bias = c.add_bias_linear
    x = g.embed("transformer.embedding.word_embeddings", c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"transformer.encoder.layers.{i}"):
            h = norm(x, "input_layernorm")
            residual = h if c.apply_residual_connection_post_layernorm else x
            with g.scope("self_attention"):
                by_head = not c.multi_query_attention
                q, k, v = qkv(g, h, c, fused="query_key_value", by_head=by_head, bias=bias or c.add_qkv_bias)
                q, k = (g.rope(part, rope_table(g, c, i), interleaved=True) for part in (q, k))
                x = residual + g.linear(g.attention(q, k, v), "dense", c.hidden_size, bias=bias)
            h = norm(x, "post_attention_layernorm")
            residual = h if c.apply_residual_connection_post_layernorm else x
            with g.scope("mlp"):
                x = residual + fused_mlp(g, h, c, gate_up="dense_h_to_4h", down="dense_4h_to_h", bias=bias)
    if c.post_layer_norm:
        x = norm(x, "transformer.encoder.final_layernorm")
    tied = "transformer.embedding.word_embeddings" if c.tie_word_embeddings else None
    return g.logits(x, "transformer.output_layer", c.vocab_size, tied=tied)
