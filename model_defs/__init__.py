"""Model definitions: one short file a family.

`ARCHITECTURES` below is the only road from a config.json to code: a name that it lacks is an error, never an import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final, NamedTuple

from dashinfer_lite.errors import ModelError

# architecture → module, function, config class
_MODELS: Final = {
    "LlamaForCausalLM": ("llama", "llama", "LlamaConfig"),
    "MistralForCausalLM": ("llama", "mistral", "MistralConfig"),
    "QWenLMHeadModel": ("qwen", "qwen", "QwenConfig"),
    "Qwen2ForCausalLM": ("qwen2", "qwen2", "Qwen2Config"),
    "Qwen3ForCausalLM": ("qwen3", "qwen3", "Qwen3Config"),
    "MixtralForCausalLM": ("mixtral", "mixtral", "MixtralConfig"),
    "Qwen2MoeForCausalLM": ("qwen2_moe", "qwen2_moe", "Qwen2MoeConfig"),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3_moe", "Qwen3MoeConfig"),
    "ChatGLMModel": ("chatglm", "chatglm", "ChatGLMConfig"),
    "ChatGLMForConditionalGeneration": ("chatglm", "chatglm", "ChatGLMConfig"),
    "GlmForCausalLM": ("glm", "glm", "GlmConfig"),
    "Glm4ForCausalLM": ("glm", "glm4", "Glm4Config"),
    "BaiChuanForCausalLM": ("baichuan", "baichuan", "BaichuanConfig"),
    "BaichuanForCausalLM": ("baichuan", "baichuan", "BaichuanConfig"),
    "Gemma2ForCausalLM": ("gemma", "gemma2", "Gemma2Config"),
    "Gemma3ForCausalLM": ("gemma", "gemma3", "Gemma3Config"),
    "Phi3ForCausalLM": ("phi3", "phi3", "Phi3Config"),
}
ARCHITECTURES: Final = tuple(_MODELS)

# An older model of the same name, known by a key of its config.json.
_OLDER: Final = {
    ("ChatGLMModel", "inner_hidden_size"): ("chatglm1", "chatglm1", "ChatGLM1Config"),
    ("ChatGLMForConditionalGeneration", "inner_hidden_size"): ("chatglm1", "chatglm1", "ChatGLM1Config"),
}

# A key of config.json → what a model that has it needs.
_PARTS: Final = {
    "vision_config": "a vision tower",
    "visual": "a vision tower",
    "audio_config": "an audio tower",
    "num_experts": "its mixture of experts",
    "num_local_experts": "its mixture of experts",
    "n_routed_experts": "its mixture of experts",
    "kv_lora_rank": "latent attention",
    "linear_num_value_heads": "linear attention",
    "state_size": "state-space layers",
    "is_encoder_decoder": "an encoder",
}
_ENDINGS: Final = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model")


class ModelDef(NamedTuple):
    """`forward(graph, config)` declares the model.

    `config.from_dict` and `config.from_folder` read its configuration.
    """

    architecture: str
    forward: Callable[..., object]
    config: Any


def find_model(architecture: str, config: Mapping[str, Any] | None = None) -> ModelDef:
    """The definition for a name out of config.json's "architectures"; ModelError where there is none.

    `config` is the parsed file: two generations may share a name, and an error tells what it asks for.
    """
    config = config or {}
    older = (row for (name, key), row in _OLDER.items() if name == architecture and config.get(key) is not None)
    row = next(older, _MODELS.get(architecture))
    if row is None:
        raise ModelError(_unsupported(architecture, config))
    module_name, function, config_class = row
    module = import_module(f"{__name__}.{module_name}")
    return ModelDef(architecture, getattr(module, function), getattr(module, config_class))


def _unsupported(architecture: str, config: Mapping[str, Any]) -> str:
    stems = {_stem(name): name for name in ARCHITECTURES}
    nearest = [stems[stem] for stem in get_close_matches(_stem(architecture), stems, n=3, cutoff=0.3)]
    parts = dict.fromkeys(part for key, part in _PARTS.items() if config.get(key))
    missing = " and ".join(["a definition of its forward pass in model_defs", *parts])
    return (
        f"architecture {architecture!r} is not supported: missing is {missing}; the nearest that are supported: "
        f"{', '.join(nearest) or 'none'}; there are {', '.join(ARCHITECTURES)}"
    )


def _stem(architecture: str) -> str:
    for ending in _ENDINGS:
        architecture = architecture.removesuffix(ending)
    return architecture.lower()
