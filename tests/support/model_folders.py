"""Random tiny models in the Hugging Face folder format, for any test that needs one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 36,
        "shared_expert_intermediate_size": 52,
    },
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": True},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json of two small layers; `changes` replace keys, None removes one."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 2,
        "bos_token_id": 1,
        **EXPERTS.get(family, {}),
    }
    if family == "mistral":
        config["sliding_window"] = None
    return {key: value for key, value in {**config, **changes}.items() if value is not None or key == "sliding_window"}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a checkpoint of this configuration has."""
    family = config["model_type"]
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or q_heads
    size = config.get("head_dim") or hidden // q_heads
    qkv_bias = family in ("qwen2", "qwen2_moe") or (
        family in ("llama", "qwen3", "qwen3_moe") and config.get("attention_bias", False)
    )
    qkv_bias = config.get("qkv_bias", qkv_bias)
    o_bias = qkv_bias and family not in ("qwen2", "qwen2_moe")
    mlp_bias = family == "llama" and config.get("mlp_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        linears = {
            "self_attn.q_proj": (q_heads * size, hidden, qkv_bias),
            "self_attn.k_proj": (kv_heads * size, hidden, qkv_bias),
            "self_attn.v_proj": (kv_heads * size, hidden, qkv_bias),
            "self_attn.o_proj": (hidden, q_heads * size, o_bias),
        }
        if has_experts(config, layer):
            linears |= expert_shapes(config)
        else:
            linears |= {
                "mlp.gate_proj": (inner, hidden, mlp_bias),
                "mlp.up_proj": (inner, hidden, mlp_bias),
                "mlp.down_proj": (hidden, inner, mlp_bias),
            }
        for name, (n, k, bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (n, k)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (n,)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if family in ("qwen3", "qwen3_moe"):
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (size,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (size,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def has_experts(config: dict[str, Any], layer: int) -> bool:
    """Whether a layer has experts in place of its MLP."""
    if config["model_type"] not in EXPERTS or config.get("num_experts") == 0:
        return False
    sparse = (layer + 1) % config.get("decoder_sparse_step", 1) == 0
    return sparse and layer not in config.get("mlp_only_layers", ())


def expert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int, bool]]:
    """(N, K, bias) of the linears of a layer of experts, the router included."""
    mixtral = config["model_type"] == "mixtral"
    block, names = (
        ("block_sparse_moe", ("w1", "w3", "w2")) if mixtral else ("mlp", ("gate_proj", "up_proj", "down_proj"))
    )
    experts = config.get("num_experts") or config["num_local_experts"]
    hidden, inner = config["hidden_size"], config["intermediate_size" if mixtral else "moe_intermediate_size"]
    shared = config.get("shared_expert_intermediate_size", 0)
    linears = {f"{block}.gate": (experts, hidden, False)}
    for expert in [f"{block}.experts.{e}" for e in range(experts)] + [f"{block}.shared_expert"] * bool(shared):
        width = shared if expert.endswith("shared_expert") else inner
        gate, up, down = (f"{expert}.{name}" for name in names)
        linears |= {gate: (width, hidden, False), up: (width, hidden, False), down: (hidden, width, False)}
    if shared:
        linears[f"{block}.shared_expert_gate"] = (1, hidden, False)
    return linears


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 tensors whose activations neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values = 0.3 * values
        elif "embed" not in name:
            values = values * 1.5 / np.sqrt(shape[-1])
        tensors[name] = values.astype(np.float32)
    return tensors


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """What remains of fp32 values in a file of `dtype` (float32, float16 or bfloat16), as fp32."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else values


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """The bits of finite fp32 values rounded to bf16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """One safetensors file with every tensor as `dtype`; the library has no bf16 for NumPy."""
    name_of = {"float32": "F32", "float16": "F16", "float64": "F64", "bfloat16": "BF16"}
    header, data = {}, bytearray()
    for name, values in tensors.items():
        raw = bf16_bits(values) if dtype == "bfloat16" else values.astype(dtype)
        offsets = [len(data), len(data) + raw.nbytes]
        header[name] = {"dtype": name_of[dtype], "shape": list(values.shape), "data_offsets": offsets}
        data += raw.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_model_folder(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
    shards: int = 1,
    tokenizer: Path | None = None,
) -> Path:
    """Writes config.json, weights in its dtype, and the tokenizer files of another folder; returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config, seed) if tensors is None else tensors
    dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
    if shards == 1:
        write_tensors(path / "model.safetensors", tensors, dtype)
    else:
        names = list(tensors)
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            mine = names[shard::shards]
            write_tensors(path / file, {name: tensors[name] for name in mine}, dtype)
            weight_map.update(dict.fromkeys(mine, file))
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in TOKENIZER_FILES if tokenizer else ():
        if tokenizer is not None and (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, path / name)
    return path
