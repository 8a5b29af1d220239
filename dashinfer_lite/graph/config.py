"""What a model definition needs to read its config.json; the one other thing it imports besides the builder."""

from dashinfer_lite.weights.config_values import (
    Config,
    attention_heads,
    boolean,
    choice,
    either,
    layer_types,
    natural_int,
    natural_ints,
    positive_float,
    positive_int,
    sliding_window,
)
from dashinfer_lite.weights.rope_config import rope_parameters

__all__ = [
    "Config",
    "attention_heads",
    "boolean",
    "choice",
    "either",
    "layer_types",
    "natural_int",
    "natural_ints",
    "positive_float",
    "positive_int",
    "rope_parameters",
    "sliding_window",
]
