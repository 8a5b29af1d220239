"""An independent forward pass of the Llama-like families: float64, no cache, straight from a checkpoint's tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray
MLP = ("gate_proj", "up_proj", "down_proj")


def dense_logits(
    config: dict[str, Any], tensors: dict[str, Array], tokens: list[int], prompt_len: int | None = None
) -> Array:
    """logits[T,V] of the whole sequence; `prompt_len` matters to rope that depends on the length."""
    w = {name: values.astype(np.float64) for name, values in tensors.items()}
    eps = config["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        h = _norm(x, w[f"{at}.input_layernorm.weight"], eps)
        x = x + _attention(config, w, at, h, layer, prompt_len or len(tokens))
        h = _norm(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        moe = f"{at}.block_sparse_moe" if config["model_type"] == "mixtral" else f"{at}.mlp"
        x = x + (_experts(config, w, moe, h) if f"{moe}.gate.weight" in w else _mlp(config, w, moe, h))
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    return _norm(x, w["model.norm.weight"], eps) @ w[head].T


def _mlp(config: dict[str, Any], w: dict[str, Array], at: str, h: Array, names: tuple[str, str, str] = MLP) -> Array:
    gate, up, down = (f"{at}.{name}" for name in names)
    return _linear(w, down, _act(_linear(w, gate, h), config.get("hidden_act", "silu")) * _linear(w, up, h))


def _experts(config: dict[str, Any], w: dict[str, Array], at: str, h: Array) -> Array:
    """Token by token: the experts with the largest probabilities, weighted by them."""
    mixtral = config["model_type"] == "mixtral"
    scores = np.exp(_linear(w, f"{at}.gate", h))
    y = np.zeros_like(h)
    for t, row in enumerate(scores):
        p = row / row.sum()
        best = sorted(range(len(p)), key=lambda e: -p[e])[: config["num_experts_per_tok"]]
        whole = sum(p[e] for e in best) if mixtral or config.get("norm_topk_prob") else 1.0
        for e in best:
            y[t] += p[e] / whole * _mlp(config, w, f"{at}.experts.{e}", h[t], ("w1", "w3", "w2") if mixtral else MLP)
    if f"{at}.shared_expert_gate.weight" in w:
        gate = 1 / (1 + np.exp(-_linear(w, f"{at}.shared_expert_gate", h)))
        y = y + gate * _mlp(config, w, f"{at}.shared_expert", h)
    return y


def _attention(config: dict[str, Any], w: dict[str, Array], at: str, h: Array, layer: int, prompt_len: int) -> Array:
    q_heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or q_heads
    size = config.get("head_dim") or config["hidden_size"] // q_heads
    q = _linear(w, f"{at}.self_attn.q_proj", h).reshape(len(h), q_heads, size)
    k = _linear(w, f"{at}.self_attn.k_proj", h).reshape(len(h), kv_heads, size)
    v = _linear(w, f"{at}.self_attn.v_proj", h).reshape(len(h), kv_heads, size)
    if f"{at}.self_attn.q_norm.weight" in w:
        q = _norm(q, w[f"{at}.self_attn.q_norm.weight"], config["rms_norm_eps"])
        k = _norm(k, w[f"{at}.self_attn.k_norm.weight"], config["rms_norm_eps"])
    for p in range(len(h)):
        frequencies, factor, rotary = rope(config, size, max(prompt_len, p + 1), layer)
        q[p], k[p] = (_rotate(head, p * frequencies, factor, rotary) for head in (q[p], k[p]))
    window = _window(config, layer)
    y = np.zeros_like(q)
    for head in range(q_heads):
        keys, values = k[:, head * kv_heads // q_heads], v[:, head * kv_heads // q_heads]
        for p in range(len(h)):
            first = max(0, p - window + 1) if window else 0
            s = keys[first : p + 1] @ q[p, head] / math.sqrt(size)
            e = np.exp(s - s.max())
            y[p, head] = e @ values[first : p + 1] / e.sum()
    return _linear(w, f"{at}.self_attn.o_proj", y.reshape(len(h), -1))


def rope(config: dict[str, Any], size: int, n: int, layer: int) -> tuple[Array, float, int]:
    """(inverse frequencies, factor on cosine and sine, rotary columns) of a token in a sequence of length n."""
    given = config.get("rope_parameters") or {
        **(config.get("rope_scaling") or {}),
        "rope_theta": config.get("rope_theta", 10000.0),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
    }
    if "full_attention" in given:
        given = given[config["layer_types"][layer]]
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = given.get("rope_theta", 10000.0)
    rotary = int(size * given.get("partial_rotary_factor", 1.0))
    factor, longest = given.get("factor", 1.0), config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings", longest)
    original = given.get("original_max_position_embeddings", original)
    exponents = np.arange(0, rotary, 2) / rotary
    plain = theta**-exponents
    if kind == "linear":
        return plain / factor, 1.0, rotary
    if kind == "dynamic" and n > longest:
        theta = theta * (factor * n / longest - (factor - 1)) ** (rotary / (rotary - 2))
        return theta**-exponents, 1.0, rotary
    if kind == "llama3":
        low, high = given["low_freq_factor"], given["high_freq_factor"]
        turns = original * plain / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return plain * (smooth + (1 - smooth) / factor), 1.0, rotary
    if kind == "yarn":
        bounds = [
            rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (given.get("beta_fast", 32), given.get("beta_slow", 1))
        ]
        low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), rotary - 1)
        ramp = np.clip((np.arange(rotary // 2) - low) / max(high - low, 0.001), 0, 1)
        return plain * (1 - ramp) + plain / factor * ramp, 0.1 * math.log(factor) + 1, rotary
    if kind == "longrope":
        scale = longest / original
        divisors = np.array(given["long_factor" if n > original else "short_factor"])
        return plain / divisors, math.sqrt(1 + math.log(scale) / math.log(original)), rotary
    return plain, 1.0, rotary


def _rotate(heads: Array, angles: Array, factor: float, rotary: int) -> Array:
    cos, sin, half = np.cos(angles) * factor, np.sin(angles) * factor, rotary // 2
    a, b = heads[:, :half], heads[:, half:rotary]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, heads[:, rotary:]], axis=1)


def _window(config: dict[str, Any], layer: int) -> int | None:
    window = config.get("sliding_window")
    if config.get("layer_types"):
        return window if config["layer_types"][layer] == "sliding_attention" else None
    if config["model_type"] in ("mistral", "mixtral"):
        return window
    if config.get("use_sliding_window") and layer >= config.get("max_window_layers", 28):
        return window
    return None


def _linear(w: dict[str, Array], name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def _norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _act(x: Array, kind: str) -> Array:
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
