"""Rotary position embedding parameters, normalised over both generations of config.json.

Published files have `rope_theta` and `rope_scaling` {"type" or "rope_type", ...}, newer ones `rope_parameters`
{"rope_type", "rope_theta", ...}, in a few families one such object a layer type.
"""

from __future__ import annotations

from typing import Any, Final

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.config_values import CONFIG_FILE, Config, boolean, positive_float, positive_int
from dashinfer_lite.weights.files import shown

# Older names on the left. "mrope" is the plain rotation whose mrope_section says which axis turns which pair.
ALIASES: Final = {"su": "longrope", "mrope": "default"}
ROPE_TYPES: Final = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
LAYER_KINDS: Final = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")


def rope_parameters(
    config: Config, *, default_theta: float = 10000.0, default_partial: float = 1.0, where: str = CONFIG_FILE
) -> dict[str, Any]:
    """Returns the rotary parameters with every default filled in, or one such dict a layer type.

    Always: rope_type, rope_theta, partial_rotary_factor (in (0, 1]). Where given: mrope_section, mrope_interleaved.
    linear    factor
    dynamic   factor, max_position_embeddings
    yarn      factor, original_max_position_embeddings, beta_fast, beta_slow, truncate,
              attention_factor, mscale, mscale_all_dim (each None where absent)
    llama3    factor, low_freq_factor, high_freq_factor, original_max_position_embeddings
    longrope  factor, short_factor, long_factor (lists; whoever knows D checks their length),
              original_max_position_embeddings, attention_factor (None where absent)

    Raises ModelError for an unknown rope_type and for values that give no finite rotation.
    """
    defaults = default_theta, default_partial
    given = _object(config, "rope_parameters", where)
    if given is None:
        scaling = _object(config, "rope_scaling", where)
        return _normalised(config, scaling or {}, defaults, f"{where} rope_scaling" if scaling else where)
    where = f"{where} rope_parameters"
    if given and all(key in LAYER_KINDS for key in given):
        return {
            kind: _normalised(config, _object(given, kind, where) or {}, defaults, f"{where}.{kind}") for kind in given
        }
    return _normalised(config, given, defaults, where)


def _normalised(config: Config, given: Config, defaults: tuple[float, float], where: str) -> dict[str, Any]:
    rope_type = given.get("rope_type")
    if rope_type is None:
        rope_type = given.get("type")
    if rope_type is None:
        rope_type = "default"
    if isinstance(rope_type, str):
        rope_type = ALIASES.get(rope_type, rope_type)
    if rope_type not in ROPE_TYPES:
        raise ModelError(f"{where}: rope_type is {shown(rope_type)}, expected one of {', '.join(ROPE_TYPES)}")
    inherited = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    merged = {**inherited, **{key: value for key, value in given.items() if value is not None}}

    result: dict[str, Any] = {
        "rope_type": rope_type,
        "rope_theta": positive_float(merged, "rope_theta", defaults[0], where=where),
        "partial_rotary_factor": positive_float(merged, "partial_rotary_factor", defaults[1], where=where),
    }
    if result["partial_rotary_factor"] > 1:
        raise ModelError(f"{where}: partial_rotary_factor is {result['partial_rotary_factor']}, expected at most 1")
    if merged.get("mrope_section") is not None:
        result["mrope_section"] = _mrope_section(merged["mrope_section"], where)
        result["mrope_interleaved"] = boolean(merged, "mrope_interleaved", False, where=where)
    match rope_type:
        case "linear":
            result["factor"] = positive_float(merged, "factor", where=where)
        case "dynamic":
            result["factor"] = positive_float(merged, "factor", where=where)
            result["max_position_embeddings"] = positive_int(config, "max_position_embeddings")
        case "yarn":
            result |= _yarn(config, merged, result["rope_theta"], where)
        case "llama3":
            result |= _llama3(config, merged, where)
        case "longrope":
            result |= _longrope(config, merged, where)
    return result


def _yarn(config: Config, given: Config, theta: float, where: str) -> dict[str, Any]:
    if theta <= 1:
        raise ModelError(f"{where}: rope_theta is {theta}, yarn needs one above 1")
    original = _original_length(config, given, where)
    values = {
        "factor": _factor(config, given, original, where),
        "original_max_position_embeddings": original,
        "beta_fast": positive_float(given, "beta_fast", 32.0, where=where),
        "beta_slow": positive_float(given, "beta_slow", 1.0, where=where),
        "truncate": boolean(given, "truncate", True, where=where),
    }
    if values["beta_fast"] < values["beta_slow"]:
        raise ModelError(f"{where}: beta_fast is below beta_slow")
    return values | {key: _optional(given, key, where) for key in ("attention_factor", "mscale", "mscale_all_dim")}


def _llama3(config: Config, given: Config, where: str) -> dict[str, Any]:
    values = {
        "factor": positive_float(given, "factor", where=where),
        "low_freq_factor": positive_float(given, "low_freq_factor", where=where),
        "high_freq_factor": positive_float(given, "high_freq_factor", where=where),
        "original_max_position_embeddings": _original_length(config, given, where),
    }
    if values["low_freq_factor"] >= values["high_freq_factor"]:
        raise ModelError(f"{where}: low_freq_factor is not below high_freq_factor")
    return values


def _longrope(config: Config, given: Config, where: str) -> dict[str, Any]:
    original = _original_length(config, given, where)
    values: dict[str, Any] = {
        "factor": _factor(config, given, original, where),
        "original_max_position_embeddings": original,
        "attention_factor": _optional(given, "attention_factor", where),
    }
    for key in ("short_factor", "long_factor"):
        factors = given.get(key)
        if not isinstance(factors, list) or not factors:
            raise ModelError(f"{where}: {key} is {shown(factors)}, expected a list of numbers")
        values[key] = [positive_float({f"{key}[{i}]": x}, f"{key}[{i}]", where=where) for i, x in enumerate(factors)]
    if len(values["short_factor"]) != len(values["long_factor"]):
        raise ModelError(f"{where}: short_factor and long_factor differ in length")
    return values


def _factor(config: Config, given: Config, original: int, where: str) -> float:
    """The stretching factor, else the ratio of the lengths."""
    if given.get("factor") is not None:
        return positive_float(given, "factor", where=where)
    return positive_int(config, "max_position_embeddings") / original


def _original_length(config: Config, given: Config, where: str) -> int:
    """The length before stretching: from the rope object, else beside it, else max_position_embeddings."""
    for source, at in ((given, where), (config, CONFIG_FILE)):
        if source.get("original_max_position_embeddings") is not None:
            return positive_int(source, "original_max_position_embeddings", where=at)
    return positive_int(config, "max_position_embeddings")


def _optional(given: Config, key: str, where: str) -> float | None:
    return None if given.get(key) is None else positive_float(given, key, where=where)


def _mrope_section(value: object, where: str) -> list[int]:
    if not isinstance(value, list) or len(value) != 3 or any(type(item) is not int or item < 0 for item in value):
        raise ModelError(f"{where}: mrope_section is {shown(value)}, expected three non-negative integers")
    return list(value)


def _object(config: Config, key: str, where: str) -> dict[str, Any] | None:
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"{where}: {key} is {shown(value)}, expected an object or null")
    return value
