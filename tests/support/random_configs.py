"""Random small configurations of every family: odd sizes, every option and rope scaling that the family knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Config = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

HEAD_SIZES = st.sampled_from([8, 10, 12, 16, 20, 34, 64, 80, 96, 128, 256])
FLAG = st.booleans()


@st.composite
def configs(draw: Draw, family: str) -> Config:
    """A config.json of the family, of either generation of keys."""
    config: Config = _FAMILIES[family](draw)
    return {key: value for key, value in config.items() if value is not _ABSENT}


# ---- families ------------------------------------------------------------------------------------------------------


def _llama(draw: Draw) -> Config:
    config = _usual(draw, "LlamaForCausalLM", "llama")
    config |= {"attention_bias": draw(FLAG), "mlp_bias": draw(FLAG), "hidden_act": draw(st.sampled_from(_ACTS))}
    return _with_rope(draw, config)


def _mistral(draw: Draw) -> Config:
    window = draw(st.sampled_from([None, 1, 5, 33]))
    return _with_rope(draw, _usual(draw, "MistralForCausalLM", "mistral") | {"sliding_window": window})


def _qwen2(draw: Draw) -> Config:
    return _with_rope(draw, _sliding(draw, _usual(draw, "Qwen2ForCausalLM", "qwen2")))


def _qwen3(draw: Draw) -> Config:
    config = _usual(draw, "Qwen3ForCausalLM", "qwen3") | {"attention_bias": draw(FLAG)}
    return _with_rope(draw, _sliding(draw, config))


def _mixtral(draw: Draw) -> Config:
    experts = draw(st.integers(1, 9))
    config = _usual(draw, "MixtralForCausalLM", "mixtral") | {"sliding_window": draw(st.sampled_from([_ABSENT, 5]))}
    config |= {"num_local_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}
    return _with_rope(draw, config)


def _qwen2_moe(draw: Draw) -> Config:
    config = _qwen_experts(draw, "Qwen2MoeForCausalLM", "qwen2_moe")
    return config | {"shared_expert_intermediate_size": draw(st.integers(1, 90)), "qkv_bias": draw(FLAG)}


def _qwen3_moe(draw: Draw) -> Config:
    return _qwen_experts(draw, "Qwen3MoeForCausalLM", "qwen3_moe") | {"attention_bias": draw(FLAG)}


def _phi3(draw: Draw) -> Config:
    config = _usual(draw, "Phi3ForCausalLM", "phi3") | {"sliding_window": draw(st.sampled_from([None, 6, 40]))}
    return _with_rope(draw, config, partial=True)


def _glm(draw: Draw) -> Config:
    return _with_rope(draw, _usual(draw, "GlmForCausalLM", "glm") | {"attention_bias": draw(FLAG)}, partial=True)


def _glm4(draw: Draw) -> Config:
    return _with_rope(draw, _usual(draw, "Glm4ForCausalLM", "glm4") | {"attention_bias": draw(FLAG)}, partial=True)


def _gemma2(draw: Draw) -> Config:
    config = _gemma(draw, "Gemma2ForCausalLM", "gemma2")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        config[key] = draw(st.sampled_from([_ABSENT, None, 2.0, 50.0]))
    return _with_rope(draw, config)


def _gemma3(draw: Draw) -> Config:
    config = _gemma(draw, "Gemma3ForCausalLM", "gemma3_text")
    layers = config["num_hidden_layers"]
    if draw(FLAG):
        full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4}
        local = {"rope_type": "default", "rope_theta": 300.0}
        config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
        kinds = st.sampled_from(["full_attention", "sliding_attention"])
        return config | {"layer_types": draw(st.lists(kinds, min_size=layers, max_size=layers))}
    scaling = draw(st.sampled_from([None, {"rope_type": "linear", "factor": 8.0}]))
    ropes = {"rope_theta": draw(st.sampled_from([_ABSENT, 1e4])), "rope_scaling": scaling}
    return config | ropes | {"rope_local_base_freq": 100.0, "sliding_window_pattern": draw(st.sampled_from([2, 3]))}


def _baichuan(draw: Draw) -> Config:
    size = draw(HEAD_SIZES)
    heads = draw(st.integers(1, 7 if size <= 64 else 3))
    config = _common(draw) | {
        "architectures": [draw(st.sampled_from(["BaichuanForCausalLM", "BaiChuanForCausalLM"]))],
        "model_type": "baichuan",
        "hidden_size": heads * size,
        "intermediate_size": draw(st.integers(5, 150)),
        "num_attention_heads": heads,
        "rms_norm_eps": 1e-6,
        "normalize_lm_head": draw(st.sampled_from([_ABSENT, False, True])),
    }
    length = draw(st.sampled_from(["max_position_embeddings", "model_max_length"]))
    return config | {length: 256, "num_hidden_layers": 2}


def _qwen(draw: Draw) -> Config:
    heads, size = draw(st.integers(1, 3)), draw(HEAD_SIZES)
    logn = draw(FLAG)
    config = _common(draw) | {"architectures": ["QWenLMHeadModel"], "model_type": "qwen"}
    config |= {
        "kv_channels": size,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": draw(st.sampled_from([10000, 500.0])),
        "rotary_pct": 1.0 if logn else draw(st.sampled_from([1.0, 0.5])) if size % 4 == 0 else 1.0,
        "seq_length": draw(st.sampled_from([4, 9, 31, 2048])),
        "use_dynamic_ntk": draw(FLAG),
        "use_logn_attn": logn,
        "no_bias": draw(FLAG),
    }
    inner = 2 * draw(st.integers(4, 70))
    if draw(FLAG):
        config |= {"n_embd": heads * size, "n_layer": 2, "n_head": heads, "n_positions": 256, "ffn_hidden_size": inner}
        config["padded_vocab_size"] = config["vocab_size"] + draw(st.integers(0, 40))
    else:
        config |= {"hidden_size": heads * size, "num_hidden_layers": 2, "num_attention_heads": heads}
        config |= {"max_position_embeddings": 256, "intermediate_size": inner}
    return config


def _chatglm(draw: Draw) -> Config:
    is_grouped, size = draw(FLAG), draw(st.sampled_from([8, 12, 16, 20, 64, 128, 256]))
    kv_heads, heads = _heads(draw, size)
    config = _common(draw) | {"architectures": ["ChatGLMModel"], "model_type": "chatglm"}
    config["padded_vocab_size"] = config.pop("vocab_size")
    fits = draw(FLAG)  # kv_channels is hidden_size / heads
    return config | {
        "num_layers": 2,
        "hidden_size": heads * size if fits else draw(st.integers(9, 90)),
        "ffn_hidden_size": draw(st.integers(5, 150)),
        "num_attention_heads": heads,
        "kv_channels": _ABSENT if fits and draw(FLAG) else size,
        "multi_query_attention": is_grouped,
        "multi_query_group_num": kv_heads if is_grouped else draw(st.sampled_from([_ABSENT, 1])),
        "layernorm_epsilon": 1e-5,
        "rmsnorm": draw(FLAG),
        "post_layer_norm": draw(FLAG),
        "add_qkv_bias": draw(FLAG),
        "add_bias_linear": draw(FLAG),
        "apply_residual_connection_post_layernorm": draw(FLAG),
        "rope_ratio": draw(st.sampled_from([_ABSENT, 1, 50, 500])),
        "seq_length": 256,
    }


def _chatglm1(draw: Draw) -> Config:
    heads, size = draw(st.integers(1, 4)), draw(st.sampled_from([8, 12, 16, 20, 64, 128, 256]))
    return _common(draw) | {
        "architectures": [draw(st.sampled_from(["ChatGLMModel", "ChatGLMForConditionalGeneration"]))],
        "model_type": "chatglm",
        "num_layers": 2,
        "hidden_size": heads * size,
        "inner_hidden_size": draw(st.integers(5, 150)),
        "num_attention_heads": heads,
        "layernorm_epsilon": 1e-5,
        "position_encoding_2d": True,
        "max_sequence_length": 256,
        "bos_token_id": 20,
        "gmask_token_id": 17,
        "mask_token_id": 16,
    }


# ---- what they share -----------------------------------------------------------------------------------------------

_ABSENT = object()
_ACTS = ("silu", "gelu", "gelu_new")


def _common(draw: Draw) -> Config:
    return {"vocab_size": draw(st.integers(40, 150)), "tie_word_embeddings": False, "torch_dtype": "float32"}


def _heads(draw: Draw, size: int) -> tuple[int, int]:
    """KV heads and query heads; few where they are large."""
    most = 3 if size <= 64 else 2
    kv_heads = draw(st.integers(1, most))
    return kv_heads, kv_heads * draw(st.integers(1, most))


def _usual(draw: Draw, architecture: str, model_type: str) -> Config:
    """Grouped heads of any size; head_dim is left out where it is hidden_size / heads."""
    size, fits = draw(HEAD_SIZES), draw(FLAG)
    kv_heads, heads = _heads(draw, size)
    return _common(draw) | {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": heads * size if fits else draw(st.integers(9, 90)),
        "intermediate_size": draw(st.integers(5, 150)),
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _ABSENT if fits else size,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": draw(FLAG),
    }


def _gemma(draw: Draw, architecture: str, model_type: str) -> Config:
    config = _usual(draw, architecture, model_type)
    return config | {
        "num_hidden_layers": 3,
        "tie_word_embeddings": draw(st.sampled_from([_ABSENT, True, False])),
        "attention_bias": draw(FLAG),
        "sliding_window": draw(st.sampled_from([_ABSENT, 1, 7])),
        "query_pre_attn_scalar": draw(st.sampled_from([24, 144.5])),
        "hidden_activation": draw(st.sampled_from([_ABSENT, "gelu_pytorch_tanh", "gelu"])),
    }


def _qwen_experts(draw: Draw, architecture: str, model_type: str) -> Config:
    """Experts in all layers, in every other one, or not in the first."""
    experts = draw(st.integers(1, 40))
    config = _sliding(draw, _usual(draw, architecture, model_type)) | {
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, min(experts, 9))),
        "moe_intermediate_size": draw(st.integers(1, 90)),
        "norm_topk_prob": draw(st.sampled_from([_ABSENT, False, True])),
        "decoder_sparse_step": draw(st.sampled_from([_ABSENT, 1, 2])),
        "mlp_only_layers": draw(st.sampled_from([_ABSENT, [], [0]])),
    }
    return _with_rope(draw, config)


def _sliding(draw: Draw, config: Config) -> Config:
    """Qwen's windows: off, from a layer on, or layer by layer."""
    kinds = ["sliding_attention", "full_attention"]
    choices = [{}, {"max_window_layers": 1}, {"layer_types": kinds}]
    choice = draw(st.sampled_from(choices))
    return config | choice | {"use_sliding_window": bool(choice), "sliding_window": draw(st.sampled_from([1, 6, 90]))}


def _with_rope(draw: Draw, config: Config, partial: bool = False) -> Config:
    """Any scaling, as published files or as newer ones write it."""
    size = config["head_dim"]
    if size is _ABSENT:
        size = config["hidden_size"] // config["num_attention_heads"]
    share = draw(st.sampled_from([1.0, 0.5, 0.75])) if partial and size % 8 == 0 else 1.0
    pairs = int(size * share) // 2
    scaling = draw(st.sampled_from(_scalings(pairs)))
    theta = draw(st.sampled_from([10000.0, 77.0]))
    longest = draw(st.sampled_from([20, 64]))
    if draw(FLAG):
        rope = {"rope_theta": theta, "partial_rotary_factor": share, **(scaling or {"rope_type": "default"})}
        return config | {"max_position_embeddings": longest, "rope_parameters": rope}
    rope = {"rope_theta": theta, "rope_scaling": scaling, "partial_rotary_factor": share}
    return config | {"max_position_embeddings": longest} | rope


def _scalings(pairs: int) -> list[Config | None]:
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    return [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0} if pairs > 1 else None,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "llama3", "factor": 8.0, **llama3},
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 18,
            "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [2.0 + i for i in range(pairs)],
        },
    ]


_FAMILIES: dict[str, Callable[[Draw], Config]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen": _qwen,
    "chatglm": _chatglm,
    "chatglm1": _chatglm1,
    "glm": _glm,
    "glm4": _glm4,
    "baichuan": _baichuan,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
}
FAMILIES = tuple(_FAMILIES)
WITH_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
