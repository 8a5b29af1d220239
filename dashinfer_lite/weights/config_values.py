"""Values out of an untrusted config.json: one getter a kind of value, each with a full error message.

`config` is the parsed file (transformers' key names) and null always means absent. `where` names the file in messages.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.files import shown

Config = Mapping[str, Any]

CONFIG_FILE: Final = "config.json"
MAX_SIZE: Final = 2**31 - 1
MAX_HEADS: Final = 4096
MAX_HEAD_DIM: Final = 256
MIN_HEAD_DIM: Final = 8
LAYER_TYPES: Final = ("full_attention", "sliding_attention")
QWEN_FAMILIES: Final = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
MISTRAL_FAMILIES: Final = ("mistral", "mixtral")
# Of so many layers the last one is full, the others slide.
FULL_EVERY: Final = {"gemma2": 2, "gemma3_text": 6}


class AttentionHeads(NamedTuple):
    """Hq query heads share Hkv key and value heads of size D."""

    query: int
    key_value: int
    size: int


def positive_int(
    config: Config, key: str, default: int | None = None, *, maximum: int = MAX_SIZE, where: str = CONFIG_FILE
) -> int:
    """Returns an integer from 1 to `maximum`. Without a default the key is required."""
    value = _given(config, key, default, where)
    if type(value) is not int or not 1 <= value <= maximum:
        raise _bad(where, key, value, f"an integer from 1 to {maximum}")
    return value


def natural_int(
    config: Config, key: str, default: int | None = None, *, maximum: int = MAX_SIZE, where: str = CONFIG_FILE
) -> int:
    """Returns an integer from 0 to `maximum`. Without a default the key is required."""
    value = _given(config, key, default, where)
    if type(value) is not int or not 0 <= value <= maximum:
        raise _bad(where, key, value, f"an integer from 0 to {maximum}")
    return value


def natural_ints(
    config: Config, key: str, default: tuple[int, ...] | None = None, *, where: str = CONFIG_FILE
) -> tuple[int, ...]:
    """Returns a list of integers from 0 on. Without a default the key is required."""
    value = _given(config, key, default, where)
    if not isinstance(value, (list, tuple)) or any(
        type(item) is not int or not 0 <= item <= MAX_SIZE for item in value
    ):
        raise _bad(where, key, value, "a list of integers from 0 on")
    return tuple(value)


def positive_float(config: Config, key: str, default: float | None = None, *, where: str = CONFIG_FILE) -> float:
    """Returns a finite number above 0. Without a default the key is required."""
    value = _given(config, key, default, where)
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise _bad(where, key, value, "a finite number above 0")
    return float(value)


def boolean(config: Config, key: str, default: bool | None = None, *, where: str = CONFIG_FILE) -> bool:
    """Returns true or false. Without a default the key is required."""
    value = _given(config, key, default, where)
    if type(value) is not bool:
        raise _bad(where, key, value, "true or false")
    return value


def choice(
    config: Config, key: str, choices: Collection[str], default: str | None = None, *, where: str = CONFIG_FILE
) -> str:
    """Returns one of `choices`. Without a default the key is required."""
    value = _given(config, key, default, where)
    if not isinstance(value, str) or value not in choices:
        raise _bad(where, key, value, "one of " + ", ".join(choices))
    return value


def either(config: Config, *names: str) -> str:
    """Returns the first of a value's names that the file uses; where it uses none, the first."""
    return next((name for name in names if config.get(name) is not None), names[0])


def attention_heads(
    config: Config,
    *,
    query: str = "num_attention_heads",
    key_value: str = "num_key_value_heads",
    size: str = "head_dim",
    hidden: str = "hidden_size",
    where: str = CONFIG_FILE,
) -> AttentionHeads:
    """Returns (Hq, Hkv, D) from num_attention_heads, num_key_value_heads (else Hq) and head_dim (else H / Hq).

    The parameters are the names that a family has for these keys. D must be even and from 8 to 256, and Hq a multiple
    of Hkv.
    """
    heads = positive_int(config, query, maximum=MAX_HEADS, where=where)
    kv_heads = positive_int(config, key_value, heads, maximum=MAX_HEADS, where=where)
    if heads % kv_heads:
        raise _bad(where, key_value, kv_heads, f"a divisor of {query}, which is {heads}")
    if config.get(size) is not None:
        columns = positive_int(config, size, where=where)
        origin = size
    else:
        width = positive_int(config, hidden, where=where)
        if width % heads:
            raise _bad(where, hidden, width, f"a multiple of {query} ({heads}), or a {size}")
        columns = width // heads
        origin = f"{hidden} / {query}"
    if columns % 2 or not MIN_HEAD_DIM <= columns <= MAX_HEAD_DIM:
        raise _bad(where, origin, columns, f"an even number from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    return AttentionHeads(heads, kv_heads, columns)


def sliding_window(config: Config, family: str | None = None, *, where: str = CONFIG_FILE) -> int | None:
    """Returns the window w in effect (key j is visible to query i iff i-w < j <= i), or None.

    The Qwen families look at sliding_window (4096) only when use_sliding_window is true; Mistral (not Mixtral) and
    Gemma read an absent key as 4096 and null as none; other families need the key.
    """
    family = _family(config, family, where)
    if not boolean(config, "use_sliding_window", family not in QWEN_FAMILIES, where=where):
        return None
    if family in QWEN_FAMILIES or (family in ("mistral", *FULL_EVERY) and "sliding_window" not in config):
        return positive_int(config, "sliding_window", 4096, where=where)
    if config.get("sliding_window") is None:
        return None
    return positive_int(config, "sliding_window", where=where)


def layer_types(config: Config, family: str | None = None, *, where: str = CONFIG_FILE) -> tuple[str, ...]:
    """Returns "full_attention" or "sliding_attention" for every layer: as listed, else derived for the family.

    Published files list nothing. Then the Qwen families slide from layer max_window_layers (28) on, Mistral and Phi-3
    in every layer, Gemma in all but every sliding_window_pattern-th (2, in Gemma 3 6), and only where `sliding_window`
    gives one; others have full attention. `family` is the model_type, where the file's own is not to be asked.
    """
    count = positive_int(config, "num_hidden_layers", maximum=MAX_HEADS, where=where)
    window = sliding_window(config, family, where=where)
    listed = config.get("layer_types")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != count or any(item not in LAYER_TYPES for item in listed):
            raise _bad(where, "layer_types", listed, f"{count} entries, each {' or '.join(LAYER_TYPES)}")
        if window is None and "sliding_attention" in listed:
            raise ModelError(f"{where}: layer_types asks for sliding_attention, but no sliding_window is in effect")
        return tuple(listed)
    family = _family(config, family, where)
    if window is not None and family in FULL_EVERY:
        every = positive_int(config, "sliding_window_pattern", FULL_EVERY[family], where=where)
        return tuple(LAYER_TYPES[(layer + 1) % every != 0] for layer in range(count))
    first_sliding = count
    if window is not None and family in (*MISTRAL_FAMILIES, "phi3"):
        first_sliding = 0
    elif window is not None and family in QWEN_FAMILIES:
        first_sliding = natural_int(config, "max_window_layers", 28, where=where)
    return tuple(LAYER_TYPES[layer >= first_sliding] for layer in range(count))


def _family(config: Config, family: str | None, where: str) -> str:
    if family is not None:
        return family
    value = config.get("model_type")
    if not isinstance(value, str):
        raise _bad(where, "model_type", value, "the name of a model family")
    return value


def _given(config: Config, key: str, default: object, where: str) -> Any:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"{where}: lacks {key}")
    return value


def _bad(where: str, key: str, value: object, expected: str) -> ModelError:
    return ModelError(f"{where}: {key} is {shown(value)}, expected {expected}")
