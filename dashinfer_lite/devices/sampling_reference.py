"""The op "sample" in NumPy, for one row of logits; docs/sampling.md is the specification.

Written for reading: it sorts whole rows. Weights are computed in fp32 with the specified `exp` and summed as integers,
so tokens equal those of native devices. The one difference: a fused multiply-add is done in double precision and then
rounded, which differs from a single rounding in about one case in 2^29.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dashinfer_lite.devices.step import RAW_LOGPROB, STATUS_EMPTY, STATUS_NAN, STATUS_OK

if TYPE_CHECKING:
    Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
    Ints = np.ndarray[tuple[int], np.dtype[np.int32]]

GREEDY_BELOW = 1e-5
HOTTEST = 1e30
UNIT = 2.0**44  # a weight of 1 as an integer mass
WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What one row gives.

    `rank` and `logprob` are 0 and the tops are empty where no report was asked for; `token` is 0 where `status` is not
    STATUS_OK. There are at most n_top tops, best first.
    """

    token: int
    status: int
    logprob: float
    rank: int
    top_ids: Ints
    top_logprobs: Floats


def sample_row(logits: np.ndarray, sample: np.void, max_top: int) -> SampleResult:
    """Pick a token from fp32 `logits` [V] as `sample`, a record of SAMPLE_DTYPE, says.

    Reports at most `max_top` alternatives. Lists are read from the record's addresses, which must be valid. `logits`
    stay unchanged.
    """
    raw = _flushed(np.asarray(logits, np.float32))
    target = int(sample["target"])
    none: Any = np.zeros(0, np.int32), np.zeros(0, np.float32)
    if np.isnan(raw).any():
        return SampleResult(0, STATUS_NAN, 0.0, 0, *none)
    if raw.max() == -np.inf or target >= len(raw):
        return SampleResult(0, STATUS_EMPTY, 0.0, 0, *none)

    logprobs = raw_logprobs(raw) if target >= 0 or int(sample["flags"]) & RAW_LOGPROB else None
    order = best_first(raw)
    tops = none
    if logprobs is not None:
        ids = order[: max(0, min(int(sample["n_top"]), max_top))].astype(np.int32)
        tops = ids, logprobs[ids]
    token, status = (target, STATUS_OK) if target >= 0 else _pick(raw, sample)
    if logprobs is None or status != STATUS_OK:
        return SampleResult(token, status, 0.0, 0, *tops)
    rank = int(np.flatnonzero(order == token)[0]) + 1
    return SampleResult(token, status, float(logprobs[token]), rank, *tops)


def raw_logprobs(x: Floats) -> Floats:
    """Return the log probabilities of a row without NaN and with a logit above -inf.

    Infinite logits share everything.
    """
    if x.max() == np.inf:
        x = np.where(x == np.inf, np.float32(0), np.float32(-np.inf))
    shifted = x.astype(np.float64) - float(x.max())
    with np.errstate(over="ignore"):
        result: Floats = (shifted - math.log(np.exp(shifted).sum())).astype(np.float32)
    return result


def best_first(x: np.ndarray) -> np.ndarray:
    """Return the indices in the order (value descending, index ascending)."""
    return np.argsort(-x, kind="stable")


def weights(x: Floats, temperature: float) -> Floats:
    """Return exp((x - max) / temperature) in fp32, one rounding an operation."""
    if x.max() == np.inf:
        return np.where(x == np.inf, np.float32(1), np.float32(0))
    inverse = np.float32(1) / np.float32(min(temperature, HOTTEST))
    with np.errstate(over="ignore"):
        return exp32((x - x.max()) * inverse)


def masses(w: Floats) -> np.ndarray:
    """Return weights in [0, 1] as integers in units of 2^-44, to the nearest, ties to even."""
    return np.rint(w.astype(np.float64) * UNIT).astype(np.uint64)


def exp32(x: Floats) -> Floats:
    """Return exp of x <= 0 by the polynomial of docs/arithmetic.md."""
    small = x < np.float32(-87)
    x = np.where(small, np.float32(0), x)
    n = np.rint(x * np.float32(1.4426950408889634))
    r = _fma(-n, np.float32(0.693359375), x)
    r = _fma(-n, np.float32(-2.12194440e-4), r)
    p = np.full_like(x, np.float32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = _fma(p, r, np.float32(c))
    y = _fma(p, r * r, r + np.float32(1)) * np.exp2(n)
    return np.where(small, np.float32(0), y.astype(np.float32))


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return one block of Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & WORD, (a >> 32) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def token_bits(seed: int, sample_index: int, position: int) -> int:
    """Return the 64 random bits of one token."""
    low, high, _, _ = philox4x32((sample_index, position, 0, 0), (seed & WORD, seed >> 32))
    return high << 32 | low


def _flushed(x: Floats) -> Floats:
    """Return x with zeros for its subnormal numbers, as arithmetic on a device treats them."""
    result: Floats = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)
    return result


def _fma(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    exact: np.ndarray = a.astype(np.float64) * np.float64(b)
    result: Floats = (exact + c).astype(np.float32)
    return result


def _pick(raw: Floats, sample: np.void) -> tuple[int, int]:
    """Return the token and the status."""
    with np.errstate(invalid="ignore", over="ignore"):
        x = _flushed(_edited(raw, sample))
    if np.isnan(x).any():
        return 0, STATUS_NAN
    if x.max() == -np.inf:
        return 0, STATUS_EMPTY
    if not sample["temperature"] >= np.float32(GREEDY_BELOW):
        return int(np.argmax(x)), STATUS_OK
    return _draw(x, sample), STATUS_OK


def _draw(x: Floats, sample: np.void) -> int:
    w = weights(x, float(sample["temperature"]))
    order = best_first(x)
    if 0 < sample["top_k"] < len(x):
        w[order[int(sample["top_k"]) :]] = 0
    if sample["top_p"] < 1:
        sorted_masses = masses(w)[order]
        share = int(max(0.0, float(sample["top_p"])) * 2**64)
        need = max(1, int(sorted_masses.sum()) * share >> 64)
        w[order[int(np.searchsorted(np.cumsum(sorted_masses), need)) + 1 :]] = 0
    if sample["min_p"] > 0:
        w[w < min(sample["min_p"], np.float32(1))] = 0
    cumulative = np.cumsum(masses(w))
    bits = token_bits(int(sample["seed"]), int(sample["sample_index"]), int(sample["position"]))
    return int(np.searchsorted(cumulative, np.uint64(int(cumulative[-1]) * bits >> 64), side="right"))


def _edited(raw: Floats, sample: np.void) -> Floats:
    """Return the logits after mask, banned tokens, bias, penalties and no_repeat_ngram, in this order."""
    x = raw.copy()
    vocab = len(x)
    if sample["mask"]:
        words = _read(ctypes.c_uint32, sample["mask"], (vocab + 31) // 32)
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab]
        x[allowed == 0] = -np.inf
    banned = _read(ctypes.c_int32, sample["banned_ids"], sample["n_banned"])
    x[_known(banned, vocab)] = -np.inf
    bias_ids = _read(ctypes.c_int32, sample["bias_ids"], sample["n_bias"])
    for token, bias in zip(bias_ids, _read(ctypes.c_float, sample["bias_values"], len(bias_ids)), strict=True):
        if 0 <= token < vocab:
            x[token] += bias
    penalties = sample["repetition_penalty"], sample["frequency_penalty"], sample["presence_penalty"]
    if penalties == (1, 0, 0) and sample["no_repeat_ngram"] <= 0:
        return x
    history = _read(ctypes.c_int32, sample["history"], sample["history_len"])
    if penalties != (1, 0, 0):
        _penalize(x, history, max(0, int(sample["prompt_len"])), *penalties)
    if sample["no_repeat_ngram"] > 0:
        x[_known(_repeating(history, int(sample["no_repeat_ngram"])), vocab)] = -np.inf
    return x


def _penalize(
    x: Floats, history: Ints, prompt_len: int, repetition: np.float32, frequency: np.float32, presence: np.float32
) -> None:
    """Change x in place. Repetition looks at prompt and output, the others at the output alone."""
    seen = np.unique(_known(history, len(x)))
    x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    generated, counts = np.unique(_known(history[prompt_len:], len(x)), return_counts=True)
    x[generated] -= frequency * counts.astype(np.float32)
    x[generated] -= presence


def _repeating(history: Ints, n: int) -> Ints:
    """Return the tokens that would complete an n-gram which the history already has."""
    if n > len(history):
        return history[:0]
    grams = np.lib.stride_tricks.sliding_window_view(history, n)
    same = (grams[:, :-1] == history[len(history) - n + 1 :]).all(axis=1)
    result: Ints = grams[same, -1]
    return result


def _known(ids: Ints, vocab: int) -> Ints:
    return ids[(ids >= 0) & (ids < vocab)]


def _read(kind: type[Any], address: int, length: int) -> Any:
    """Return a copy of `length` C values at an address; an empty array where there are none."""
    if not address or length <= 0:
        return np.zeros(0, np.dtype(kind))
    return np.array((kind * int(length)).from_address(int(address)))
