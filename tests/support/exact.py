"""docs/arithmetic.md in NumPy, operation by operation: what every tier must give, bit for bit.

All arrays are fp32 and every `+`, `*` and `/` rounds once. Inputs are such that nothing underflows, so that flushing
subnormal numbers to zero, which NumPy does not do, makes no difference.
"""

from __future__ import annotations

import numpy as np
from one_op import bf16

Array = np.ndarray
F32 = np.float32
CELL, SEGMENT, STEP, SPLIT = 32, 64, 256, 1024
LARGEST_CODE = {"u8": 255, "u4": 15}


def fma(a: Array, b: Array, c: Array) -> Array:
    """a · b + c with one rounding.

    The product of two fp32 numbers is exact in double precision. The sum is rounded to odd there: where it is inexact
    and its last bit is 0, the neighbour on the side of the error is taken. Rounding that to fp32 rounds the exact sum
    (S. Boldo, G. Melquiond, Emulation of a FMA and correctly rounded sums, IEEE ToC 57(4), 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    c = np.asarray(c, np.float64)
    total = np.asarray(product + c)
    with np.errstate(invalid="ignore", over="ignore"):
        virtual = total - product
        error = (product - (total - virtual)) + (c - virtual)
        even = total.view(np.int64) & 1 == 0
        toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        odd = np.where(even & (error != 0), toward, total)
        return odd.astype(F32)


def multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a · b + c with two roundings: the same as fma where the product is exact, as that of two bf16 numbers is."""
    return a * b + c


def product(x: Array, w: Array, cache: str = "f32", start: Array | None = None) -> Array:
    """x[M,K] · w[N,K]ᵀ: even and odd k of a cell of 32 in two chains, cells in ascending order, segments of at most 64.

    With `start` the sums begin there and K is one segment: attention's p · V.
    """
    chain = multiply_add if cache in ("bf16", *LARGEST_CODE) else fma
    x, w = padded(x), padded(w)
    cells = x.shape[1] // CELL
    count = 1 if start is not None else -(-cells // SEGMENT)
    total: Array | None = None
    for s in range(count):
        acc = np.zeros((len(x), len(w)), F32) if start is None else start
        for cell in range(cells * s // count, cells * (s + 1) // count):
            te = to = np.zeros((len(x), len(w)), F32)
            for k in range(cell * CELL, (cell + 1) * CELL, 2):
                te = chain(x[:, k, None], w[None, :, k], te)
                to = chain(x[:, k + 1, None], w[None, :, k + 1], to)
            acc = acc + (te + to)
        total = acc if total is None else total + acc
    assert total is not None
    return total


def padded(x: Array) -> Array:
    """Zeros up to whole cells of columns."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % CELL)))


# ---- elementary functions --------------------------------------------------------------------------------------------


LOG2E = F32(1.44269504088896341)


def exp2(t: Array) -> Array:
    """2^t for t < 128: a polynomial in t - floor(t), which is rounded down."""
    t = np.asarray(t, F32)
    with np.errstate(invalid="ignore"):
        n = np.floor(t)
        r = t - n
        r = np.where(r + n > t, np.nextafter(r, F32(-1)), r)
        p = F32(1.8793186e-3)
        for c in (8.990995e-3, 5.5818677e-2, 2.4015927e-1, 6.931517e-1, 1.0):
            p = fma(p, r, F32(c))
        y = np.ldexp(p, np.nan_to_num(n).clip(-300, 300).astype(np.int32))
    return np.where(np.isnan(t), t, np.where(t < F32(-126), F32(0), y)).astype(F32)


def exp(x: Array) -> Array:
    """e^x as a power of 2."""
    x = np.asarray(x, F32)
    return exp2(np.where(x > F32(88), F32(88), x) * LOG2E)


def silu(x: Array) -> Array:
    return x / (F32(1) + exp(-x))


def tanh(x: Array) -> Array:
    return F32(1) - F32(2) / (F32(1) + exp(F32(2) * x))


def gelu_tanh(x: Array) -> Array:
    u = F32(0.7978845608) * fma(F32(0.044715) * x * x, x, x)
    return x / (F32(1) + exp(F32(-2) * u))


def gelu_erf(x: Array) -> Array:
    """With Abramowitz and Stegun 7.1.26."""
    z = x / F32(1.41421356237)
    a = np.abs(z)
    t = F32(1) / fma(F32(0.3275911), a, F32(1))
    p = F32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = fma(p, t, F32(c))
    y = F32(1) - p * t * exp(-(a * a))
    return F32(0.5) * x * (F32(1) + np.where(z < 0, -y, y))


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh, "gelu_erf": gelu_erf}


# ---- reductions ------------------------------------------------------------------------------------------------------


def lanes(x: Array) -> Array:
    """x[..., n] as [..., n / 16, 16], padded with zeros."""
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 16)])
    return x.reshape(*x.shape[:-1], -1, 16)


def folded(lane: Array) -> Array:
    """16 lanes to one number: halves are added."""
    for width in (8, 4, 2, 1):
        lane = lane[..., :width] + lane[..., width : 2 * width]
    return lane[..., 0]


def row_sum(x: Array) -> Array:
    """The sum over the last axis."""
    total = np.zeros((*x.shape[:-1], 16), F32)
    for i in range(lanes(x).shape[-2]):
        total = total + lanes(x)[..., i, :]
    return folded(total)


def square_sum(x: Array) -> Array:
    """The sum of squares over the last axis."""
    total = np.zeros((*x.shape[:-1], 16), F32)
    for i in range(lanes(x).shape[-2]):
        part = lanes(x)[..., i, :]
        total = fma(part, part, total)
    return folded(total)


def rms_norm(x: Array, w: Array, eps: float) -> Array:
    inverse = F32(1) / np.sqrt(square_sum(x) / F32(x.shape[-1]) + F32(eps))
    return x * inverse[..., None] * w


def layer_norm(x: Array, w: Array, b: Array, eps: float) -> Array:
    n = F32(x.shape[-1])
    d = x - (row_sum(x) / n)[..., None]
    inverse = F32(1) / np.sqrt(square_sum(d) / n + F32(eps))
    return fma(d * inverse[..., None], w, b)


def rotated(x: Array, table: Array, interleaved: bool) -> Array:
    """x[T,heads,D] by table[T, cos | sin]."""
    rotary = table.shape[1]
    half = rotary // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    first, second = (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (slice(0, half), slice(half, rotary))
    y = x.copy()
    y[..., first] = fma(x[..., first], cos, -(x[..., second] * sin))
    y[..., second] = fma(x[..., second], cos, x[..., first] * sin)
    return y


# ---- attention -------------------------------------------------------------------------------------------------------


def kept(x: Array, cache: str) -> tuple[Array, Array]:
    """Heads x[..., D] as a cache holds them, and each one's scale: 1, or what makes numbers of its integers."""
    if cache not in LARGEST_CODE:
        return bf16(x) if cache == "bf16" else x, np.ones(x.shape[:-1], F32)
    largest = F32(LARGEST_CODE[cache])
    low, high = np.minimum(x.min(-1), F32(0)), np.maximum(x.max(-1), F32(0))
    scale = np.maximum((high - low) / largest, F32(1e-5))
    zero = np.rint(-low / scale)
    code = np.minimum(np.maximum(np.rint(x / scale[..., None]) + zero[..., None], F32(0)), largest)
    return code - zero[..., None], scale


def attention(
    q: Array,
    k: Array,
    v: Array,
    seen: range,
    scale: float,
    cache: str = "f32",
    softcap: float = 0.0,
    slope: float | None = None,
    sink: float | None = None,
) -> Array:
    """One query row q[D] over k, v[S,D]: positions in steps of 256 within splits of 1024, splits merged in order."""
    width, size = -(-len(q) // CELL) * CELL, len(q)
    q = q * (F32(scale) * LOG2E)
    q = q if cache == "f32" else bf16(q)
    k, k_scale = kept(k, cache)
    v, v_scale = kept(v, cache)
    empty = (F32(-np.inf), F32(0), np.zeros(width, F32))
    total = empty if sink is None else (F32(sink) * LOG2E, F32(1), np.zeros(width, F32))
    for split in range(0, len(k), SPLIT):
        state = total if split == 0 else empty
        for start in range(split, min(split + SPLIT, len(k)), STEP):
            here = [t - start for t in seen if start <= t < start + STEP]
            if here:
                step = slice(start, start + STEP)
                keys, values = (k[step], k_scale[step]), (v[step], v_scale[step])
                state = softmax_step(state, q, keys, values, start, here, cache, softcap, slope)
        total = state if split == 0 else merged(total, state)
    _, length, out = total
    return (out / (length if length else F32(1)) + F32(0))[:size]


def softmax_step(
    state: tuple[Array, Array, Array],
    q: Array,
    keys: tuple[Array, Array],
    values: tuple[Array, Array],
    start: int,
    here: list[int],
    cache: str,
    softcap: float,
    slope: float | None,
) -> tuple[Array, Array, Array]:
    """The state (m, l, O) after the positions `here` of a step; keys and values come with their scales."""
    m, length, out = state
    k, v = keys[0], values[0]
    scores = product(q[None], k, cache)[0] * keys[1]
    if softcap:
        cap = F32(softcap) * LOG2E
        scores = cap * tanh(scores / cap)
    if slope is not None:
        scores = scores + F32(slope) * LOG2E * np.arange(start, start + len(k)).astype(F32)
    hidden = np.ones(len(k), bool)
    hidden[here] = False
    scores = np.where(hidden, F32(-np.inf), scores)
    top = max(m, scores.max())
    f = exp2(m - top) if m < top else F32(1)
    p = exp2(scores - top)
    weights = p * values[1]
    narrow = weights if cache == "f32" else bf16(weights)
    columns = padded(np.pad(v, ((0, len(p) - len(v)), (0, 0))))
    out = product(narrow[None], np.ascontiguousarray(columns.T), cache, start=(out * f)[None])[0]
    return top, length * f + row_sum(p), out


def merged(one: tuple[Array, Array, Array], two: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Two splits' states as one."""
    top = max(one[0], two[0])
    a, b = (exp2(m - top) if m < top else F32(1) for m in (one[0], two[0]))
    return top, fma(one[1], a, two[1] * b), fma(one[2], a, two[2] * b)
