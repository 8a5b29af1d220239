"""The mathematics of the reference device: one NumPy function an operation, on unpadded or padded fp32 arrays.

Products run row by row: what NumPy hands a matrix to may sum a row by its place among the others, and here a row's
result depends on that row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

SOFTMAX_STEP = 256
SPLIT = 1024


def widened(raw: npt.NDArray[Any], dtype: str) -> Floats:
    """Stored elements as fp32; bf16 comes as its bits."""
    if dtype == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def rounded(x: npt.NDArray[Any], dtype: str) -> Floats:
    """fp32 values rounded to nearest even as `dtype` (f32, f16 or bf16) holds them."""
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    x = np.ascontiguousarray(x, np.float32)
    if dtype == "f32":
        return x
    bits = x.view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, nearest.view(np.float32))


def product(x: Floats, w: Floats) -> Floats:
    """x[M,K] · w[N,K]ᵀ → y[M,N]"""
    y: Floats = np.matmul(x[:, None], w.T)[:, 0]
    return y


def rms_norm(x: Floats, w: Floats, eps: float) -> Floats:
    """x[..., N] · w[N] / sqrt(mean(x²) + eps)"""
    return x * _inverse_rms(x, eps) * w


def layer_norm(x: Floats, w: Floats, b: Floats | None, eps: float) -> Floats:
    """(x - mean) / sqrt(var + eps) · w + b over the last axis."""
    d: Floats = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    y: Floats = d * _inverse_rms(d, eps) * w
    return y if b is None else y + b


def activation(x: Floats, code: int) -> Floats:
    """silu (1), gelu by tanh (2) or gelu by erf (3)"""
    match code:
        case 0:
            return x
        case 1:
            return x * sigmoid(x)
        case 2:
            u = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
            return x * sigmoid(2 * u)
        case 3:
            return (x * 0.5 * (1.0 + _erf(x.astype(np.float64) / np.sqrt(2.0)))).astype(np.float32)
        case _:
            raise ValueError(f"activation {code}")


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x))"""
    with np.errstate(over="ignore"):
        y: Floats = np.float32(1) / (np.float32(1) + np.exp(-x))
    return y


def rotate(x: Floats, table: Floats, rotary: int, interleaved: bool) -> None:
    """Rotates the first `rotary` columns of x[T,heads,D] in place by table[T, cos | sin]."""
    half = rotary // 2
    cos, sin = table[:, None, :half], table[:, None, half:rotary]
    first = (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (slice(0, half), slice(half, rotary))
    a, b = (x[..., part].copy() for part in first)
    x[..., first[0]] = a * cos - b * sin
    x[..., first[1]] = b * cos + a * sin


@dataclass(frozen=True, slots=True)
class AttentionArgs:
    """What is the same for all sequences of a step.

    `kv_dtype` is the type that q and the probabilities are rounded to.
    """

    scale: float
    softcap: float
    window: int
    kv_dtype: str
    alibi: Floats | None
    sinks: Floats | None


def attention(
    q: Floats, k: Floats, v: Floats, bidirectional: int, args: AttentionArgs, scales: Floats | None = None
) -> Floats:
    """q[n,Hq,D] are the last n of the tokens whose k, v are [S,Hkv,D]; returns y[n,Hq,D].

    The walk over positions is that of docs/arithmetic.md: softmax steps of 256 positions in splits of 1024. With
    `scales` [k | v,S,Hkv] k and v are the integers of a quantized cache.
    """
    n, q_heads, size = q.shape
    length, kv_heads, _ = k.shape
    bidirectional = min(bidirectional, length)
    group = q_heads // kv_heads
    # Query rows of one KV head: (token, head of the group).
    by_token = rounded(q * np.float32(args.scale), args.kv_dtype).reshape(n, kv_heads, group * size)
    rows = by_token.transpose(1, 0, 2).reshape(kv_heads, n * group, 1, size)
    padding = [(0, 0), (0, -length % SOFTMAX_STEP), (0, 0)]
    keys = np.pad(k.transpose(1, 0, 2), padding)[:, None]
    values = np.pad(v.transpose(1, 0, 2), padding)[:, None]
    if scales is None:
        scales = np.ones((2, length, kv_heads), np.float32)
    scales = np.pad(scales, [(0, 0), (0, -length % SOFTMAX_STEP), (0, 0)])
    key_scales, value_scales = scales.transpose(0, 2, 1)[:, :, None, None]

    query_at = np.repeat(np.arange(length - n, length), group)[:, None, None]
    slopes = _by_row(args.alibi, kv_heads, n)

    state = _Softmax(rows.shape)
    for split in range(0, length, SPLIT):
        part = _Softmax(rows.shape)
        for start in range(split, min(split + SPLIT, length), SOFTMAX_STEP):
            key_at = np.arange(start, start + SOFTMAX_STEP)
            seen = _visible(query_at, key_at, bidirectional, args.window)
            if not seen.any():
                continue
            step = slice(start, start + SOFTMAX_STEP)
            scores = np.matmul(rows, keys[:, :, step].swapaxes(-1, -2)) * key_scales[..., step]
            if args.softcap:
                scores = np.float32(args.softcap) * np.tanh(scores / np.float32(args.softcap))
            if slopes is not None:
                scores = scores + slopes * key_at.astype(np.float32)
            seen_scores = np.where(seen, scores, np.float32(-np.inf))
            part.add(seen_scores, value_scales[..., step], values[:, :, step], args.kv_dtype)
        state.merge(part.maximum, part.total, part.sum)
    if (sinks := _by_row(args.sinks, kv_heads, n)) is not None:
        state.merge(sinks, np.ones_like(sinks), np.zeros_like(state.sum))
    y = state.result().reshape(kv_heads, n, group * size)
    return y.transpose(1, 0, 2).reshape(n, q_heads, size)


class _Softmax:
    """A running softmax over [Hkv, rows]: maximum m, total l and weighted sum O."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.maximum = np.full((*shape[:-1], 1), -np.inf, np.float32)
        self.total = np.zeros((*shape[:-1], 1), np.float32)
        self.sum = np.zeros(shape, np.float32)

    def add(self, scores: Floats, value_scales: Floats, values: Floats, dtype: str) -> None:
        maximum = np.maximum(self.maximum, scores.max(axis=-1, keepdims=True))
        decay = _exp_difference(self.maximum, maximum)
        p = _exp_difference(scores, maximum)
        self.total = self.total * decay + p.sum(axis=-1, keepdims=True, dtype=np.float32)
        self.sum = self.sum * decay + np.matmul(rounded(p * value_scales, dtype), values)
        self.maximum = maximum

    def merge(self, maximum: Floats, total: Floats, weighted: Floats) -> None:
        highest = np.maximum(self.maximum, maximum)
        mine, theirs = _exp_difference(self.maximum, highest), _exp_difference(maximum, highest)
        self.total = self.total * mine + total * theirs
        self.sum = self.sum * mine + weighted * theirs
        self.maximum = highest

    def result(self) -> Floats:
        empty = self.total == 0
        return np.where(empty, np.float32(0), self.sum / np.where(empty, np.float32(1), self.total))


def _inverse_rms(x: Floats, eps: float) -> Floats:
    mean: Floats = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    inverse: Floats = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return inverse


def _visible(query_at: npt.NDArray[Any], key_at: npt.NDArray[Any], bidirectional: int, window: int) -> npt.NDArray[Any]:
    seen = (key_at <= query_at) | ((key_at < bidirectional) & (query_at < bidirectional))
    if window:
        seen &= key_at > query_at - window
    return seen


def _by_row(per_head: Floats | None, kv_heads: int, n: int) -> Floats | None:
    """A value a query head as [Hkv, rows, 1, 1]."""
    if per_head is None:
        return None
    return np.tile(per_head.reshape(kv_heads, 1, -1), (1, n, 1)).reshape(kv_heads, -1, 1, 1)


def _exp_difference(x: Floats, maximum: Floats) -> Floats:
    """exp(x - maximum), 0 where x is -inf."""
    finite = np.where(np.isneginf(maximum), np.float32(0), maximum)
    return np.exp(x - finite)


def _erf(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; the error is below 1.5e-7."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1.0 - poly * np.exp(-x * x))
