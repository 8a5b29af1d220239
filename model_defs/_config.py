"""The configuration of a decoder-only model: the keys that the families share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph import config as read

if TYPE_CHECKING:
    from dashinfer_lite.weights.folder import ModelFolder

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """config.json of a decoder-only model, checked, with its own key names; `rope` holds the normalised rope
    parameters.

    `layer_types` and `sliding_window` say what each layer sees, whichever way the file puts it.
    """

    family: ClassVar[str]
    whole_prompts: ClassVar[bool] = False  # a prompt's tokens see each other, so one step must have room for all

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    sliding_window: int | None
    layer_types: tuple[str, ...]
    rope: dict[str, Any]

    @classmethod
    def from_folder(cls, folder: ModelFolder) -> Self:
        """Reads the folder's config.json."""
        return cls.from_dict(folder.config, str(folder.path / "config.json"))

    @classmethod
    def from_dict(cls, config: read.Config, where: str = "config.json") -> Self:
        """Checks the keys of a parsed config.json; ModelError says which one is wrong and what was expected."""
        return cls(**cls._values(config, where))

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        """The fields by name; a family with more fields extends it."""
        heads = read.attention_heads(config, where=where)
        return {
            "vocab_size": read.positive_int(config, "vocab_size", where=where),
            "hidden_size": read.positive_int(config, "hidden_size", where=where),
            "intermediate_size": read.positive_int(config, "intermediate_size", where=where),
            "num_hidden_layers": read.positive_int(config, "num_hidden_layers", maximum=4096, where=where),
            "num_attention_heads": heads.query,
            "num_key_value_heads": heads.key_value,
            "head_dim": heads.size,
            "hidden_act": ACTIVATIONS[read.choice(config, "hidden_act", ACTIVATIONS, "silu", where=where)],
            "rms_norm_eps": read.positive_float(config, "rms_norm_eps", 1e-6, where=where),
            "max_position_embeddings": read.positive_int(config, "max_position_embeddings", 2048, where=where),
            "tie_word_embeddings": read.boolean(config, "tie_word_embeddings", False, where=where),
            "sliding_window": read.sliding_window(config, cls.family, where=where),
            "layer_types": read.layer_types(config, cls.family, where=where),
            "rope": read.rope_parameters(config, where=where),
        }

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, its own included; None: all."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    def rope_of(self, layer: int) -> dict[str, Any]:
        """The rope parameters of a layer; some families have one set a layer type."""
        if "rope_type" in self.rope:
            return self.rope
        kind = self.layer_types[layer]
        if kind not in self.rope:
            raise ModelError(f"rope_parameters has no entry for {kind}, the type of layer {layer}")
        parameters: dict[str, Any] = self.rope[kind]
        return parameters
