"""An independent forward pass of every dense family: float64, no cache, straight from a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from dense_forward import _act as act
from dense_forward import _linear as linear
from dense_forward import _norm as rms
from dense_forward import dense_logits as llama_like
from dense_forward import rope as usual_rope

Array = np.ndarray
Config = dict[str, Any]
Tensors = dict[str, Array]


def family_logits(config: Config, tensors: Tensors, tokens: list[int], prompt_len: int) -> Array:
    """logits[T,V] of a whole sequence."""
    w = {name: values.astype(np.float64) for name, values in tensors.items()}
    architecture = config["architectures"][0]
    if "inner_hidden_size" in config:
        architecture = "ChatGLM1"
    if architecture not in _FAMILIES:
        return llama_like(config, tensors, tokens, prompt_len)
    return _FAMILIES[architecture](config, w, tokens, prompt_len)


# ---- families ------------------------------------------------------------------------------------------------------


def _phi3(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads, kv_heads, size = _heads(c)
    x = w["model.embed_tokens.weight"][tokens]
    for at in _layers(c, "model.layers"):
        h = rms(x, w[f"{at}.input_layernorm.weight"], c["rms_norm_eps"])
        q, k, v = _split(linear(w, f"{at}.self_attn.qkv_proj", h), heads, kv_heads, size)
        q, k = _rotate_usual(c, q, k, size, prompt_len)
        y = _attend(q, k, v, size**-0.5, _causal(len(x), c["sliding_window"]))
        x = x + linear(w, f"{at}.self_attn.o_proj", y)
        h = rms(x, w[f"{at}.post_attention_layernorm.weight"], c["rms_norm_eps"])
        x = x + _fused_mlp(w, f"{at}.mlp.gate_up_proj", f"{at}.mlp.down_proj", h)
    return _head(c, w, rms(x, w["model.norm.weight"], c["rms_norm_eps"]))


def _glm(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads, kv_heads, size = _heads(c)
    eps = c["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][tokens]
    for at in _layers(c, "model.layers"):
        h = rms(x, w[f"{at}.input_layernorm.weight"], eps)
        parts = [linear(w, f"{at}.self_attn.{name}_proj", h) for name in "qkv"]
        q, k, v = _split(np.concatenate(parts, axis=1), heads, kv_heads, size)
        q, k = _rotate_usual(c, q, k, size, prompt_len, interleaved=True)
        y = linear(w, f"{at}.self_attn.o_proj", _attend(q, k, v, size**-0.5, _causal(len(x))))
        if c["model_type"] == "glm4":
            y = rms(y, w[f"{at}.post_self_attn_layernorm.weight"], eps)
        x = x + y
        h = rms(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        y = _fused_mlp(w, f"{at}.mlp.gate_up_proj", f"{at}.mlp.down_proj", h)
        if c["model_type"] == "glm4":
            y = rms(y, w[f"{at}.post_mlp_layernorm.weight"], eps)
        x = x + y
    return _head(c, w, rms(x, w["model.norm.weight"], eps))


def _gemma(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads, kv_heads, size = _heads(c)
    is_second, eps = c["model_type"] == "gemma2", c["rms_norm_eps"]

    def norm(values: Array, name: str) -> Array:
        return rms(values, 1 + w[f"{name}.weight"], eps)

    x = w["model.embed_tokens.weight"][tokens] * math.sqrt(c["hidden_size"])
    for i, at in enumerate(_layers(c, "model.layers")):
        every = 2 if is_second else c.get("sliding_window_pattern", 6)
        slides = (i + 1) % every != 0
        if "layer_types" in c:
            slides = c["layer_types"][i] == "sliding_attention"
        h = norm(x, f"{at}.input_layernorm")
        parts = [linear(w, f"{at}.self_attn.{name}_proj", h) for name in "qkv"]
        q, k, v = _split(np.concatenate(parts, axis=1), heads, kv_heads, size)
        rope = c
        if not is_second:
            q, k = norm(q, f"{at}.self_attn.q_norm"), norm(k, f"{at}.self_attn.k_norm")
            kind = "sliding_attention" if slides else "full_attention"
            if "rope_parameters" in c:
                rope = {**c, "rope_parameters": c["rope_parameters"][kind]}
            elif slides:
                rope = {"rope_theta": c["rope_local_base_freq"], "max_position_embeddings": 1}
            else:
                rope = {"rope_theta": 1e6, **c}
        q, k = _rotate_usual(rope, q, k, size, prompt_len)
        seen = _causal(len(x), c.get("sliding_window", 4096) if slides else None)
        cap = c.get("attn_logit_softcapping", 50.0 if is_second else None)
        y = _attend(q, k, v, c["query_pre_attn_scalar"] ** -0.5, seen, cap=cap)
        x = x + norm(linear(w, f"{at}.self_attn.o_proj", y), f"{at}.post_attention_layernorm")
        h = norm(x, f"{at}.pre_feedforward_layernorm")
        gate = act(linear(w, f"{at}.mlp.gate_proj", h), c.get("hidden_activation", "gelu_pytorch_tanh"))
        y = linear(w, f"{at}.mlp.down_proj", gate * linear(w, f"{at}.mlp.up_proj", h))
        x = x + norm(y, f"{at}.post_feedforward_layernorm")
    logits = _head({"tie_word_embeddings": True, **c}, w, norm(x, "model.norm"))
    cap = c.get("final_logit_softcapping", 30.0 if is_second else None)
    return cap * np.tanh(logits / cap) if cap else logits


def _baichuan(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads = c["num_attention_heads"]
    size = c["hidden_size"] // heads
    rotary = c["architectures"][0] == "BaiChuanForCausalLM" or "max_position_embeddings" in c
    x = w["model.embed_tokens.weight"][tokens]
    distance = np.arange(len(x))[None] - np.arange(len(x))[:, None]
    bias = None if rotary else np.array(_slopes(heads))[:, None, None] * distance
    for at in _layers(c, "model.layers"):
        h = rms(x, w[f"{at}.input_layernorm.weight"], c["rms_norm_eps"])
        q, k, v = _split(linear(w, f"{at}.self_attn.W_pack", h), heads, heads, size)
        if rotary:
            q, k = (_turn(part, 10000.0 ** (-np.arange(0, size, 2) / size)) for part in (q, k))
        y = _attend(q, k, v, size**-0.5, _causal(len(x)), bias=bias)
        x = x + linear(w, f"{at}.self_attn.o_proj", y)
        h = rms(x, w[f"{at}.post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate = act(linear(w, f"{at}.mlp.gate_proj", h), "silu")
        x = x + linear(w, f"{at}.mlp.down_proj", gate * linear(w, f"{at}.mlp.up_proj", h))
    head = w["lm_head.weight"]
    if c.get("normalize_lm_head"):
        head = head / np.sqrt((head * head).sum(axis=1, keepdims=True))
    return rms(x, w["model.norm.weight"], c["rms_norm_eps"]) @ head.T


def _qwen(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads, size, trained = c.get("num_attention_heads") or c["n_head"], c["kv_channels"], c["seq_length"]
    rotary = int(size * c["rotary_pct"])
    growth = max(2 ** math.ceil(math.log2(prompt_len / trained) + 1) - 1, 1) if c["use_dynamic_ntk"] else 1
    base = c["rotary_emb_base"] * (growth ** (rotary / (rotary - 2)) if growth > 1 else 1)
    x = w["transformer.wte.weight"][tokens]
    loud = np.ones((len(x), 1, 1))
    if c["use_logn_attn"]:
        loud[:, 0, 0] = [max(math.log(p + 1, trained), 1) for p in range(len(x))]
    for at in (f"transformer.h.{i}" for i in range(2)):
        h = rms(x, w[f"{at}.ln_1.weight"], c["layer_norm_epsilon"])
        q, k, v = _split(linear(w, f"{at}.attn.c_attn", h), heads, heads, size)
        q, k = (_turn(part, base ** (-np.arange(0, rotary, 2) / rotary)) for part in (q, k))
        y = _attend(q * loud, k, v, size**-0.5, _causal(len(x)))
        x = x + linear(w, f"{at}.attn.c_proj", y)
        h = rms(x, w[f"{at}.ln_2.weight"], c["layer_norm_epsilon"])
        inner = linear(w, f"{at}.mlp.w1", h) * act(linear(w, f"{at}.mlp.w2", h), "silu")
        x = x + linear(w, f"{at}.mlp.c_proj", inner)
    return rms(x, w["transformer.ln_f.weight"], c["layer_norm_epsilon"]) @ w["lm_head.weight"].T


def _chatglm(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads = c["num_attention_heads"]
    size = c.get("kv_channels") or c["hidden_size"] // heads
    frequencies = (10000.0 * c.get("rope_ratio", 1)) ** (-np.arange(0, size // 2, 2) / (size // 2))

    def norm(values: Array, name: str) -> Array:
        if c["rmsnorm"]:
            return rms(values, w[f"{name}.weight"], c["layernorm_epsilon"])
        return _layer_norm(w, name, values, c["layernorm_epsilon"])

    x = w["transformer.embedding.word_embeddings.weight"][tokens]
    for at in (f"transformer.encoder.layers.{i}" for i in range(c["num_layers"])):
        h = norm(x, f"{at}.input_layernorm")
        fused = linear(w, f"{at}.self_attention.query_key_value", h)
        if c["multi_query_attention"]:
            q, k, v = _split(fused, heads, c["multi_query_group_num"], size)
        else:
            q, k, v = fused.reshape(len(x), heads, 3, size).transpose(2, 0, 1, 3)
        q, k = (_turn(part, frequencies, interleaved=True) for part in (q, k))
        y = linear(w, f"{at}.self_attention.dense", _attend(q, k, v, size**-0.5, _causal(len(x))))
        x = y + (h if c["apply_residual_connection_post_layernorm"] else x)
        h = norm(x, f"{at}.post_attention_layernorm")
        y = _fused_mlp(w, f"{at}.mlp.dense_h_to_4h", f"{at}.mlp.dense_4h_to_h", h)
        x = y + (h if c["apply_residual_connection_post_layernorm"] else x)
    if c["post_layer_norm"]:
        x = norm(x, "transformer.encoder.final_layernorm")
    return x @ w["transformer.output_layer.weight"].T


def _chatglm1(c: Config, w: Tensors, tokens: list[int], prompt_len: int) -> Array:
    heads, eps, alpha = c["num_attention_heads"], c["layernorm_epsilon"], math.sqrt(56)
    size = c["hidden_size"] // heads
    prompt = tokens[:prompt_len]
    context = prompt.index(c["bos_token_id"])
    gap = prompt.index(c["gmask_token_id"] if c["gmask_token_id"] in prompt else c["mask_token_id"])
    at_token = np.arange(len(tokens))
    first = np.where(at_token < context, at_token, gap)
    second = np.maximum(at_token - context + 1, 0)
    seen = _causal(len(tokens)) | (at_token[None] < context)
    frequencies = 10000.0 ** (-np.arange(0, size // 2, 2) / (size // 2))
    frequencies = frequencies.astype(np.float16).astype(np.float64)

    def turn(part: Array) -> Array:
        halves = np.split(part, 2, axis=-1)
        return np.concatenate([_turn(h, frequencies, p) for h, p in zip(halves, (first, second), strict=True)], axis=-1)

    x = w["transformer.word_embeddings.weight"][tokens]
    for at in (f"transformer.layers.{i}" for i in range(c["num_layers"])):
        a = _layer_norm(w, f"{at}.input_layernorm", x, eps)
        fused = linear(w, f"{at}.attention.query_key_value", a).reshape(len(x), heads, 3, size)
        q, k, v = fused.transpose(2, 0, 1, 3)
        y = _attend(turn(q), turn(k), v, size**-0.5, seen)
        x = a * alpha + linear(w, f"{at}.attention.dense", y)
        m = _layer_norm(w, f"{at}.post_attention_layernorm", x, eps)
        y = act(linear(w, f"{at}.mlp.dense_h_to_4h", m), "gelu_new")
        x = m * alpha + linear(w, f"{at}.mlp.dense_4h_to_h", y)
    return _layer_norm(w, "transformer.final_layernorm", x, eps) @ w["lm_head.weight"].T


_FAMILIES: dict[str, Callable[[Config, Tensors, list[int], int], Array]] = {
    "Phi3ForCausalLM": _phi3,
    "GlmForCausalLM": _glm,
    "Glm4ForCausalLM": _glm,
    "Gemma2ForCausalLM": _gemma,
    "Gemma3ForCausalLM": _gemma,
    "BaiChuanForCausalLM": _baichuan,
    "BaichuanForCausalLM": _baichuan,
    "QWenLMHeadModel": _qwen,
    "ChatGLMModel": _chatglm,
    "ChatGLM1": _chatglm1,
}


# ---- pieces --------------------------------------------------------------------------------------------------------


def _layers(c: Config, prefix: str) -> list[str]:
    return [f"{prefix}.{i}" for i in range(c["num_hidden_layers"])]


def _heads(c: Config) -> tuple[int, int, int]:
    heads = c["num_attention_heads"]
    return heads, c["num_key_value_heads"], c.get("head_dim") or c["hidden_size"] // heads


def _head(c: Config, w: Tensors, x: Array) -> Array:
    return x @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


def _split(fused: Array, heads: int, kv_heads: int, size: int) -> tuple[Array, Array, Array]:
    """Columns of all q heads, all k heads, all v heads."""
    q, k, v = np.split(fused, [heads * size, (heads + kv_heads) * size], axis=1)
    return q.reshape(len(q), heads, size), k.reshape(len(k), kv_heads, size), v.reshape(len(v), kv_heads, size)


def _causal(length: int, window: int | None = None) -> Array:
    behind = np.arange(length)[:, None] - np.arange(length)[None]
    return (behind >= 0) & (behind < (window or length))


def _attend(
    q: Array, k: Array, v: Array, scale: float, seen: Array, bias: Array | None = None, cap: float | None = None
) -> Array:
    """Softmax attention of q[T,Hq,D] over k, v [T,Hkv,D]."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(part, group, axis=1) for part in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", p / p.sum(axis=-1, keepdims=True), v).reshape(len(q), -1)


def _turn(x: Array, frequencies: Array, positions: Array | None = None, interleaved: bool = False) -> Array:
    """x[T,H,D] with its first columns rotated by position · frequency, the frequencies [n] or one row a token."""
    at = np.arange(len(x)) if positions is None else positions
    angles = (at[:, None] * frequencies)[:, None]
    n = angles.shape[-1]
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))
    y = x.copy()
    y[..., first] = x[..., first] * np.cos(angles) - x[..., second] * np.sin(angles)
    y[..., second] = x[..., second] * np.cos(angles) + x[..., first] * np.sin(angles)
    return y


def _rotate_usual(
    c: Config, q: Array, k: Array, size: int, prompt_len: int, interleaved: bool = False
) -> tuple[Array, Array]:
    """By the scalings of config.json; their factor makes the rotated columns larger."""
    ropes = [usual_rope(c, size, max(prompt_len, p + 1), 0) for p in range(len(q))]
    frequencies, rotary = np.stack([each[0] for each in ropes]), ropes[0][2]
    factor = np.concatenate([np.full(rotary, ropes[0][1]), np.ones(size - rotary)])
    q, k = (_turn(part, frequencies, interleaved=interleaved) * factor for part in (q, k))
    return q, k


def _fused_mlp(w: Tensors, gate_up: str, down: str, x: Array) -> Array:
    gate, up = np.split(linear(w, gate_up, x), 2, axis=1)
    return linear(w, down, act(gate, "silu") * up)


def _layer_norm(w: Tensors, name: str, x: Array, eps: float) -> Array:
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _slopes(heads: int) -> list[float]:
    """ALiBi's, by its published rule."""
    if heads & (heads - 1) == 0:
        start = 2 ** -(2 ** -(math.log2(heads) - 3))
        return [start ** (i + 1) for i in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return _slopes(below) + _slopes(2 * below)[0::2][: heads - below]
