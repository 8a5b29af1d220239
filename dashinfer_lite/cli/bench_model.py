"""Models of real shapes with random weights, made in memory while they are loaded: no download, no disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.safetensors import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashinfer_lite.weights.safetensors import Array

# hidden, layers, heads, KV heads, MLP, vocabulary, tied head
_SIZES: Final = {
    "tiny": (64, 2, 4, 2, 128, 512, True),
    "tiny-moe": (64, 2, 4, 2, 128, 512, True),
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "qwen2.5-7b": (3584, 28, 28, 4, 18944, 152064, False),
    "llama-3.2-1b": (2048, 16, 32, 8, 8192, 128256, True),
    "glm-4-1b": (2048, 8, 16, 2, 6912, 151552, False),  # GLM-4-9B with half the width and a fifth of the layers
    "qwen3-moe-1b": (2048, 4, 32, 4, 6144, 32768, True),  # a few layers of Qwen3-30B-A3B with fewer experts
}
# head size, experts, experts of a token, columns of an expert
_EXPERTS: Final = {"tiny-moe": (16, 6, 2, 48), "qwen3-moe-1b": (128, 48, 8, 768)}
# What the other families' config.json says besides.
_FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama-3.2-1b": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "glm-4-1b": {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "head_dim": 128,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
}
SHAPES: Final = tuple(_SIZES)
SPREAD: Final = 0.02  # standard deviation of the weights
TABLE: Final = 1 << 22  # numbers drawn once; every weight row is a window of them


def shape_config(shape: str) -> dict[str, Any]:
    """The config.json of a shape: Qwen2, or the family that its name says, with bf16 weights."""
    hidden, layers, heads, kv_heads, mlp, vocab, tied = _SIZES[shape]
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    } | _FAMILIES.get(shape, {})
    if shape in _EXPERTS:
        size, experts, chosen, inner = _EXPERTS[shape]
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": size,
            "num_experts": experts,
            "num_experts_per_tok": chosen,
            "moe_intermediate_size": inner,
            "norm_topk_prob": True,
        }
    return config


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Qwen2, Llama, GLM or Qwen3-MoE by name."""
    hidden, vocab, experts = config["hidden_size"], config["vocab_size"], config.get("num_experts", 0)
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, kv = size * config["num_attention_heads"], size * config["num_key_value_heads"]
    mlp = config["moe_intermediate_size"] if experts else config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q", query), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, hidden)
            if config["model_type"] in ("qwen2", "glm"):
                shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, query)
        if experts:
            shapes[f"{at}self_attn.q_norm.weight"] = shapes[f"{at}self_attn.k_norm.weight"] = (size,)
            shapes[f"{at}mlp.gate.weight"] = (experts, hidden)
        for block in [f"{at}mlp.experts.{e}" for e in range(experts)] or [f"{at}mlp"]:
            if config["model_type"] == "glm":
                shapes[f"{block}.gate_up_proj.weight"] = (2 * mlp, hidden)
            else:
                shapes[f"{block}.gate_proj.weight"] = shapes[f"{block}.up_proj.weight"] = (mlp, hidden)
            shapes[f"{block}.down_proj.weight"] = (hidden, mlp)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


class RandomWeights:
    """A WeightReader whose tensors are normal numbers of the model's shape, as bf16; norms are 1.

    A row is a window of one table of random numbers that begins where the tensor's name and the row number say: the
    same in every read and on every machine, at the speed of copying memory.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)
        numbers = np.random.Generator(np.random.Philox(7)).standard_normal(TABLE, np.float32) * np.float32(SPREAD)
        self._table = ((numbers.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)

    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def info(self, name: str) -> TensorInfo:
        shape = self._shape(name)
        return TensorInfo(name, "bf16", shape, Path("(random)"), 0, 2 * int(np.prod(shape)))

    def read(self, name: str) -> Array:
        return self.read_rows(name, 0, self._shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        shape = self._shape(name)
        if name.endswith("norm.weight"):
            return np.full(stop - start, 0x3F80, np.uint16)
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
        if len(shape) == 1:
            begin = seed % (TABLE - shape[0])
            return self._table[begin + start : begin + stop].copy()
        begins = (seed + np.arange(start, stop, dtype=np.int64) * 7919) % (TABLE - shape[1])
        rows: Array = self._windows(shape[1])[begins]
        return rows

    def close(self) -> None:
        """Nothing is open."""

    def _shape(self, name: str) -> tuple[int, ...]:
        try:
            return self._shapes[name]
        except KeyError:
            raise ModelError(f"the random model lacks tensor {name}") from None

    def _windows(self, width: int) -> Array:
        return np.lib.stride_tricks.sliding_window_view(self._table, width)
