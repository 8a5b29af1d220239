"""Model definitions: one short file a family.

`ARCHITECTURES` below is the only road from a config.json to code: a name that it lacks is an error, never an import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple

from dashinfer_lite.errors import ModelError

# architecture → module, function, config class
_MODELS: Final = {
    "LlamaForCausalLM": ("llama", "llama", "LlamaConfig"),
    "MistralForCausalLM": ("llama", "mistral", "MistralConfig"),
    "Qwen2ForCausalLM": ("qwen2", "qwen2", "Qwen2Config"),
    "Qwen3ForCausalLM": ("qwen3", "qwen3", "Qwen3Config"),
    "MixtralForCausalLM": ("mixtral", "mixtral", "MixtralConfig"),
    "Qwen2MoeForCausalLM": ("qwen2_moe", "qwen2_moe", "Qwen2MoeConfig"),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3_moe", "Qwen3MoeConfig"),
}
ARCHITECTURES: Final = tuple(_MODELS)


class ModelDef(NamedTuple):
    """`forward(graph, config)` declares the model.

    `config.from_dict` and `config.from_folder` read its configuration.
    """

    architecture: str
    forward: Callable[..., object]
    config: Any


def find_model(architecture: str) -> ModelDef:
    """The definition for a name out of config.json's "architectures"; ModelError where there is none."""
    if architecture not in _MODELS:
        raise ModelError(f"architecture {architecture!r} is not supported; there are {', '.join(ARCHITECTURES)}")
    module_name, function, config = _MODELS[architecture]
    module = import_module(f"{__name__}.{module_name}")
    return ModelDef(architecture, getattr(module, function), getattr(module, config))
