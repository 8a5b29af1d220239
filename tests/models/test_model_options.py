"""Every option of the families on tiny random models, against an independent dense forward pass in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_forward import dense_logits
from model_folders import random_tensors, stored, tiny_config, write_model_folder
from stepping import Loop, load

from dashinfer_lite.devices.reference import ReferenceDevice

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.0 + i for i in range(6)],
    "original_max_position_embeddings": 24,
}
LAYER_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
MIXED = ["sliding_attention", "full_attention"]

CASES: dict[str, dict[str, Any]] = {
    "llama": tiny_config("llama"),
    "llama-tied": tiny_config("llama", tie_word_embeddings=True),
    "llama-biases": tiny_config("llama", attention_bias=True, mlp_bias=True),
    "llama-one-kv-head": tiny_config("llama", num_key_value_heads=1),
    "llama-no-kv-key": tiny_config("llama", num_key_value_heads=None),
    "llama-odd-sizes": tiny_config("llama", hidden_size=50, head_dim=10, intermediate_size=37, vocab_size=97),
    "llama-head-8": tiny_config("llama", head_dim=8),
    "llama-head-80": tiny_config("llama", head_dim=80),
    "llama-head-256": tiny_config("llama", head_dim=256, num_attention_heads=2, num_key_value_heads=1),
    "llama-gelu": tiny_config("llama", hidden_act="gelu"),
    "llama-gelu-tanh": tiny_config("llama", hidden_act="gelu_pytorch_tanh"),
    "llama-partial-rotary": tiny_config("llama", head_dim=16, partial_rotary_factor=0.5),
    "llama-linear": tiny_config("llama", rope_scaling={"type": "linear", "factor": 4.0}),
    "llama-dynamic": tiny_config("llama", rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=20),
    "llama-llama3": tiny_config("llama", rope_scaling={"rope_type": "llama3", **LLAMA3}),
    "llama-yarn": tiny_config(
        "llama", rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    ),
    "llama-longrope": tiny_config("llama", rope_scaling=LONG, max_position_embeddings=96),
    "llama-new-config": tiny_config(
        "llama",
        rope_theta=None,
        torch_dtype=None,
        dtype="float32",
        rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3},
    ),
    "llama-bf16-file": tiny_config("llama", torch_dtype="bfloat16"),
    "llama-fp16-file": tiny_config("llama", torch_dtype="float16"),
    "mistral": tiny_config("mistral", sliding_window=5, head_dim=16),
    "mistral-no-window": tiny_config("mistral"),
    "qwen2": tiny_config("qwen2", tie_word_embeddings=True),
    "qwen2-sliding-from-layer": tiny_config("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen2-layer-types": tiny_config("qwen2", use_sliding_window=True, sliding_window=4, layer_types=MIXED),
    "qwen3": tiny_config("qwen3", head_dim=20),
    "qwen3-bias": tiny_config("qwen3", attention_bias=True, tie_word_embeddings=True),
    "qwen3-layer-types": tiny_config("qwen3", use_sliding_window=True, sliding_window=7, layer_types=MIXED),
    "qwen3-rope-by-layer-type": tiny_config(
        "qwen3", use_sliding_window=True, sliding_window=7, layer_types=MIXED, rope_parameters=LAYER_ROPES
    ),
    "mixtral": tiny_config("mixtral"),
    "mixtral-window": tiny_config("mixtral", sliding_window=5, num_experts_per_tok=1, tie_word_embeddings=True),
    "mixtral-all-experts": tiny_config("mixtral", num_local_experts=3, num_experts_per_tok=3),
    "qwen2-moe": tiny_config("qwen2_moe"),
    "qwen2-moe-no-bias": tiny_config("qwen2_moe", qkv_bias=False, norm_topk_prob=True),
    "qwen2-moe-every-other-layer": tiny_config("qwen2_moe", num_hidden_layers=3, decoder_sparse_step=2),
    "qwen2-moe-odd-sizes": tiny_config("qwen2_moe", moe_intermediate_size=17, shared_expert_intermediate_size=33),
    "qwen3-moe": tiny_config("qwen3_moe", head_dim=20),
    "qwen3-moe-not-renormalized": tiny_config("qwen3_moe", norm_topk_prob=False, attention_bias=True),
    "qwen3-moe-dense-layers": tiny_config("qwen3_moe", mlp_only_layers=[0], num_hidden_layers=3),
    "qwen3-moe-no-experts": tiny_config("qwen3_moe", num_experts=0),
    "qwen3-moe-new-key": tiny_config("qwen3_moe", num_experts=None, num_local_experts=6),
    "qwen3-moe-gelu": tiny_config("qwen3_moe", hidden_act="gelu_pytorch_tanh"),
}


@pytest.mark.parametrize("align", [1, 32])
@pytest.mark.parametrize("name", CASES)
def test_option(name: str, align: int, tmp_path: Path) -> None:
    config = CASES[name]
    tensors = random_tensors(config, seed=list(CASES).index(name))
    folder = write_model_folder(tmp_path, config, tensors, shards=1 + list(CASES).index(name) % 3)
    executable, program = load(folder, ReferenceDevice(col_align=align, head_align=align))
    prompt = np.random.default_rng(7).integers(0, config["vocab_size"], 29).tolist()
    (sequence,) = Loop(executable, program).generate([prompt], 6, chunk=11)

    kept = {key: stored(values, config.get("torch_dtype", "float32")) for key, values in tensors.items()}
    wanted = dense_logits(config, kept, prompt + sequence.drawn[:-1], len(prompt))
    np.testing.assert_allclose(np.stack(sequence.logits), wanted, atol=2e-4, rtol=0)
    assert sequence.drawn == wanted[len(prompt) - 1 :].argmax(axis=1).tolist()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bit_weights_are_rounded_once(dtype: str, tmp_path: Path) -> None:
    """fp32 files kept as 16 bits: fp16 computes exactly with what remains of the weights, bf16 stays near it."""
    config = tiny_config("llama")
    tensors = random_tensors(config)
    executable, program = load(write_model_folder(tmp_path, config, tensors), dtype=dtype)
    prompt = [5, 17, 99, 3, 42, 8]
    (sequence,) = Loop(executable, program).generate([prompt], 1)
    kind = {"f16": "float16", "bf16": "bfloat16"}[dtype]
    kept = {name: stored(values, kind) if values.ndim == 2 else values for name, values in tensors.items()}
    error = np.abs(np.stack(sequence.logits) - dense_logits(config, kept, prompt)).max()
    assert error < (2e-4 if dtype == "f16" else 0.15)
    if dtype == "bf16":
        assert error > 1e-3, "activations were not rounded"
