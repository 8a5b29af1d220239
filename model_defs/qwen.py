"""Qwen, the first generation (1.8B, 7B, 14B, 72B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._blocks import qkv
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class QwenConfig(DecoderConfig):
    """Files have one of two generations of keys: hidden_size, num_hidden_layers …, or n_embd, n_layer …

    `intermediate_size` counts the rows of w1, half of what the file says. `seq_length` is the length in training: with
    `use_dynamic_ntk` longer prompts turn more slowly, with `use_logn_attn` queries behind it count more.
    """

    family: ClassVar[str] = "qwen"

    embedding_rows: int
    no_bias: bool
    seq_length: int
    use_logn_attn: bool

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        for part in ("visual", "audio"):
            if config.get(part):
                raise ModelError(f"{where}: there is a {part!r} part; of this family the text models are supported")
        names = {
            new: read.either(config, new, old)
            for new, old in (
                ("hidden_size", "n_embd"),
                ("num_hidden_layers", "n_layer"),
                ("num_attention_heads", "n_head"),
                ("max_position_embeddings", "n_positions"),
                ("intermediate_size", "ffn_hidden_size"),
            )
        }
        query = names["num_attention_heads"]
        heads = read.attention_heads(
            config, query=query, key_value=query, size="kv_channels", hidden=names["hidden_size"], where=where
        )
        layers = read.positive_int(config, names["num_hidden_layers"], maximum=4096, where=where)
        values = {new: read.positive_int(config, name, where=where) for new, name in names.items()}
        if values["hidden_size"] != heads.query * heads.size:
            raise ModelError(f"{where}: kv_channels is {heads.size}, expected {names['hidden_size']} / {query}")
        if values["intermediate_size"] % 2:
            raise ModelError(f"{where}: {names['intermediate_size']} is odd, expected the rows of w1 and w2 together")
        vocabulary = read.positive_int(config, "vocab_size", where=where)
        trained = read.positive_int(config, "seq_length", values["max_position_embeddings"], where=where)
        is_dynamic = read.boolean(config, "use_dynamic_ntk", False, where=where)
        logn = read.boolean(config, "use_logn_attn", False, where=where)
        share = read.positive_float(config, "rotary_pct", 1.0, where=where)
        if share > 1 or (logn and (share < 1 or trained < 2)):
            raise ModelError(f"{where}: rotary_pct is {share}; expected at most 1, and 1 with use_logn_attn")
        return values | {
            "vocab_size": vocabulary,
            "embedding_rows": read.positive_int(config, "padded_vocab_size", vocabulary, where=where),
            "intermediate_size": values["intermediate_size"] // 2,
            "num_hidden_layers": layers,
            "num_key_value_heads": heads.key_value,
            "head_dim": heads.size,
            "hidden_act": "silu",
            "rms_norm_eps": read.positive_float(config, "layer_norm_epsilon", 1e-6, where=where),
            "tie_word_embeddings": read.boolean(config, "tie_word_embeddings", False, where=where),
            "sliding_window": None,
            "layer_types": ("full_attention",) * layers,
            "rope": {
                "rope_type": "prompt_ntk" if is_dynamic else "default",
                "rope_theta": read.positive_float(config, "rotary_emb_base", 10000.0, where=where),
                "original_max_position_embeddings": trained,
                "partial_rotary_factor": share,
            },
            "no_bias": read.boolean(config, "no_bias", True, where=where),
            "seq_length": trained,
            "use_logn_attn": logn,
        }


def qwen(g: Graph, c: QwenConfig) -> Value:
    """The Llama decoder with biases on q, k and v, and with up (w1), gate (w2) and down (c_proj) in the MLP."""
    rotary, bias = int(c.head_dim * c.rope["partial_rotary_factor"]), not c.no_bias
    table = g.rope_table(c.rope, rotary, c.max_position_embeddings)
    q_table = g.rope_table(c.rope, rotary, c.max_position_embeddings, logn=c.seq_length if c.use_logn_attn else 0)
    x = g.embed("transformer.wte", c.embedding_rows, c.hidden_size)
    for i in range(c.num_hidden_layers):
        with g.scope(f"transformer.h.{i}"):
            h = g.rms_norm(x, "ln_1", c.rms_norm_eps)
            with g.scope("attn"):
                q, k, v = qkv(g, h, c, fused="c_attn", bias=True)
                y = g.attention(g.rope(q, q_table), g.rope(k, table), v)
                x = x + g.linear(y, "c_proj", c.hidden_size, bias=bias)
            h = g.rms_norm(x, "ln_2", c.rms_norm_eps)
            with g.scope("mlp"):
                up = g.linear(h, "w1", c.intermediate_size, bias=bias)
                gate = g.linear(h, "w2", c.intermediate_size, bias=bias)
                x = x + g.linear(g.silu(gate) * up, "c_proj", c.hidden_size, bias=bias)
    x = g.rms_norm(x, "transformer.ln_f", c.rms_norm_eps)
    return g.logits(x, "lm_head", c.vocab_size, tied="transformer.wte" if c.tie_word_embeddings else None)
