"""The inverse frequencies of rotary position embeddings, with every scaling that model configurations name.

Formulas: RoFormer (arXiv:2104.09864) for the plain frequencies, YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753),
and the Hugging Face configuration reference for "linear", "dynamic" and "llama3". Roundings to fp32 stand where that
implementation has them, because an angle is a frequency times a position of up to a million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from dashinfer_lite.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    Floats = np.ndarray[tuple[int], np.dtype[np.float32]]


class RopeKind(IntEnum):
    """What frequencies depend on; the values of `di_rope_kind`.

    DYNAMIC_NTK and LONG: n = max(prompt length, position + 1). PROMPT_NTK: the prompt's length alone.
    """

    STATIC = 0
    DYNAMIC_NTK = 1
    LONG = 2
    PROMPT_NTK = 3


@dataclass(frozen=True, slots=True)
class RopeFrequencies:
    """What the op "rope_table" needs.

    `inv_freq` [rotary_dims / 2] holds for STATIC, and for the other kinds up to n = `original_max`. Beyond it LONG
    takes `long_inv_freq`, DYNAMIC_NTK and PROMPT_NTK compute the frequencies of a larger base from `theta` (and
    `factor`).
    `attention_factor` multiplies cosines and sines.
    """

    kind: RopeKind
    inv_freq: Floats
    long_inv_freq: Floats | None = None
    attention_factor: float = 1.0
    factor: float = 1.0
    theta: float = 10000.0
    original_max: int = 0


def rope_frequencies(rope: dict[str, Any], rotary_dims: int, max_position_embeddings: int) -> RopeFrequencies:
    """Turn normalised rope parameters into frequencies.

    `rope` has `rope_type`, `rope_theta` and the keys of its type: `factor`, `original_max_position_embeddings`,
    `low_freq_factor`, `high_freq_factor`, `beta_fast`, `beta_slow`, `mscale`, `mscale_all_dim`, `attention_factor`,
    `truncate`, `short_factor`, `long_factor`; None counts as absent. Raises ModelError naming the key that is missing
    or makes no sense.
    """
    if rotary_dims < 2 or rotary_dims % 2:
        raise ModelError(f"rope: {rotary_dims} rotary columns, expected an even number of at least 2")
    rope_type = rope.get("rope_type") or "default"
    build = SCALINGS.get(rope_type)
    if build is None:
        raise ModelError(f"rope_type is {rope_type!r}, expected one of {', '.join(sorted(SCALINGS))}")
    return build(rope, rotary_dims, max_position_embeddings)


def plain_frequencies(theta: float, dims: int) -> Floats:
    """Return theta^(-2i / dims) for i < dims / 2, rounded to fp32 after the exponent, the power and the division."""
    return np.float32(1) / _powers(theta, dims)


def dynamic_frequencies(theta: float, factor: float, original_max: int, n: int, dims: int) -> Floats:
    """Return the "dynamic" frequencies of a sequence of n > `original_max` tokens."""
    return _ntk(theta, factor * n / original_max - (factor - 1), dims)


def prompt_frequencies(theta: float, original_max: int, prompt_len: int, dims: int) -> Floats:
    """Return the frequencies of Qwen's first generation after a prompt of more than `original_max` tokens."""
    power = 1
    while power * original_max < prompt_len:
        power *= 2
    return _ntk(theta, 2 * power - 1, dims)


def _default(rope: dict[str, Any], dims: int, _: int) -> RopeFrequencies:
    theta = _number(rope, "rope_theta", 10000.0)
    return RopeFrequencies(RopeKind.STATIC, plain_frequencies(theta, dims), theta=theta)


def _linear(rope: dict[str, Any], dims: int, _: int) -> RopeFrequencies:
    theta, factor = _number(rope, "rope_theta", 10000.0), _number(rope, "factor")
    inv_freq = plain_frequencies(theta, dims) / np.float32(factor)
    return RopeFrequencies(RopeKind.STATIC, inv_freq, theta=theta, factor=factor)


def _dynamic(rope: dict[str, Any], dims: int, max_positions: int) -> RopeFrequencies:
    theta, factor = _number(rope, "rope_theta", 10000.0), _number(rope, "factor")
    if factor < 1:
        raise ModelError(f"rope: factor is {factor}, a dynamic rope needs at least 1")
    if dims == 2:
        raise ModelError("rope: rope_type is 'dynamic', which needs more than 2 rotary columns")
    original = round(_number(rope, "max_position_embeddings", max_positions))
    inv_freq = plain_frequencies(theta, dims)
    return RopeFrequencies(RopeKind.DYNAMIC_NTK, inv_freq, factor=factor, theta=theta, original_max=original)


def _prompt_ntk(rope: dict[str, Any], dims: int, max_positions: int) -> RopeFrequencies:
    """Qwen's: the base depends on how often the prompt holds `original_max_position_embeddings`."""
    if dims == 2:
        raise ModelError("rope: rope_type is 'prompt_ntk', which needs more than 2 rotary columns")
    theta = _number(rope, "rope_theta", 10000.0)
    original = round(_number(rope, "original_max_position_embeddings", max_positions))
    return RopeFrequencies(RopeKind.PROMPT_NTK, plain_frequencies(theta, dims), theta=theta, original_max=original)


def _two_axes(rope: dict[str, Any], dims: int, _: int) -> RopeFrequencies:
    """ChatGLM's: each half of the frequencies is that of dims / 2 columns, rounded to fp16 as its checkpoints are."""
    if dims % 4:
        raise ModelError(f"rope: {dims} rotary columns for two axes, expected a multiple of 4")
    theta = _number(rope, "rope_theta", 10000.0)
    axis = plain_frequencies(theta, dims // 2).astype(np.float16).astype(np.float32)
    return RopeFrequencies(RopeKind.STATIC, np.concatenate([axis, axis]), theta=theta)


def _yarn(rope: dict[str, Any], dims: int, max_positions: int) -> RopeFrequencies:
    theta = _number(rope, "rope_theta", 10000.0)
    if theta <= 1:
        raise ModelError(f"rope: rope_theta is {theta}, yarn needs one above 1")
    original = _number(rope, "original_max_position_embeddings", max_positions)
    factor = _number(rope, "factor", max_positions / original)
    low = _turning_column(_number(rope, "beta_fast", 32.0), original, theta, dims)
    high = _turning_column(_number(rope, "beta_slow", 1.0), original, theta, dims)
    if rope.get("truncate") is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001  # the ramp becomes a step, not a division by zero
    columns = np.arange(dims // 2, dtype=np.float32)
    ramp = np.clip((columns - np.float32(low)) / np.float32(high - low), np.float32(0), np.float32(1))
    keep = np.float32(1) - ramp
    powers = _powers(theta, dims)
    stretched, kept = np.float32(1) / (np.float32(factor) * powers), np.float32(1) / powers
    inv_freq = stretched * (np.float32(1) - keep) + kept * keep
    attention = _yarn_attention(rope, factor)
    return RopeFrequencies(RopeKind.STATIC, inv_freq, attention_factor=attention, factor=factor, theta=theta)


def _turning_column(turns: float, original: float, theta: float, dims: int) -> float:
    """Return the frequency index whose angle makes so many full turns over the original length."""
    return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _yarn_attention(rope: dict[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")

    def gain(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return gain(_number(rope, "mscale")) / gain(_number(rope, "mscale_all_dim"))
    return gain(1.0)


def _llama3(rope: dict[str, Any], dims: int, max_positions: int) -> RopeFrequencies:
    theta, factor = _number(rope, "rope_theta", 10000.0), _number(rope, "factor")
    slow, fast = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if slow >= fast:
        raise ModelError(f"rope: low_freq_factor is {slow}, expected less than high_freq_factor, which is {fast}")
    original = _number(rope, "original_max_position_embeddings", max_positions)
    inv_freq = plain_frequencies(theta, dims)
    wavelength = np.float32(2 * math.pi) / inv_freq
    stretched = inv_freq / np.float32(factor)
    smooth = (np.float32(original) / wavelength - np.float32(slow)) / np.float32(fast - slow)
    between = (np.float32(1) - smooth) * stretched + smooth * inv_freq
    short = np.where(wavelength < original / fast, inv_freq, between)
    scaled = np.where(wavelength > original / slow, stretched, short)
    return RopeFrequencies(RopeKind.STATIC, scaled.astype(np.float32), factor=factor, theta=theta)


def _longrope(rope: dict[str, Any], dims: int, max_positions: int) -> RopeFrequencies:
    theta = _number(rope, "rope_theta", 10000.0)
    original = round(_number(rope, "original_max_position_embeddings", max_positions))
    factor = _number(rope, "factor", max_positions / original)
    powers = _powers(theta, dims)
    short = np.float32(1) / (_list(rope, "short_factor", dims // 2) * powers)
    long = np.float32(1) / (_list(rope, "long_factor", dims // 2) * powers)
    attention = rope.get("attention_factor")
    if attention is not None:
        attention = _number(rope, "attention_factor")
    elif factor <= 1:
        attention = 1.0
    elif original == 1:
        raise ModelError("rope: original_max_position_embeddings is 1, a long rope without attention_factor needs more")
    else:
        attention = math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeFrequencies(RopeKind.LONG, short, long, attention, factor, theta, original)


SCALINGS: dict[str, Callable[[dict[str, Any], int, int], RopeFrequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
    "prompt_ntk": _prompt_ntk,
    "two_axes": _two_axes,
}


def _ntk(theta: float, growth: float, dims: int) -> Floats:
    """The frequencies of the base that NTK-aware scaling stretches by `growth`."""
    return plain_frequencies(theta * growth ** (dims / (dims - 2)), dims)


def _powers(theta: float, dims: int) -> Floats:
    """Return theta^(2i / dims) in fp32."""
    exponents = np.arange(0, dims, 2).astype(np.float32) / np.float32(dims)
    return np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def _number(rope: dict[str, Any], key: str, default: float | None = None) -> float:
    value = rope.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"rope: {key} is missing, which rope_type {rope.get('rope_type')!r} needs")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ModelError(f"rope: {key} is {value!r}, expected a number above 0")
    return float(value)


def _list(rope: dict[str, Any], key: str, length: int) -> Floats:
    values = rope.get(key)
    if not isinstance(values, list | tuple) or len(values) != length:
        found = f"{len(values)} values" if isinstance(values, list | tuple) else repr(values)
        raise ModelError(f"rope: {key} has {found}, expected {length}, one for each rotated pair")
    return np.array([_number({key: value}, key) for value in values], np.float32)
