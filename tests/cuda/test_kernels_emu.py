"""CUDA kernels on rows and heads against float64: embedding, norms, rope, the KV write, elementwise, quantization.

They run on the emulator, launched as `launch.h` says. Integers and codes are those of the reference, bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulated_kernels import DTYPES, Array, Kernels, Memory, make, rows, view
from kernel_data import pack_codes, pool_of, random_codes, stored_rows, values_of
from one_op import rounded, stored

from dashinfer_lite.devices.kv_reference import kept
from dashinfer_lite.devices.quant_reference import QuantizedWeight, quantize, to_planes
from dashinfer_lite.devices.reference_ops import activation
from dashinfer_lite.devices.rope_reference import rope_table
from dashinfer_lite.graph.rope_frequencies import RopeFrequencies, RopeKind, plain_frequencies

TYPES = ["f32", "bf16", "f16"]
UNIT = {"f32": 2.0**-24, "bf16": 2.0**-9, "f16": 2.0**-11}


def assert_near(got: Array, expected: Array, dtype: str, work: float = 8) -> None:
    """Within `work` fp32 roundings of the largest value, and the rounding to the output type."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=2 * UNIT[dtype], atol=work * UNIT["f32"] * scale)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [1, 70, 130])
@pytest.mark.parametrize("layer", [False, True])
def test_norm(kernels: Kernels, dtype: str, n: int, layer: bool) -> None:
    rng, memory = np.random.default_rng(n), Memory()
    cols = -(-n // 32) * 32
    x = memory.put(stored(3 * rng.standard_normal((6, cols)) + 1, dtype))
    w, b = (memory.put(rng.standard_normal(cols).astype(np.float32)) for _ in range(2))
    y = memory.put(stored_rows(6, cols, dtype))
    actual = memory.put(np.array([5], np.int32))
    args = make("NormArgs", **{"in": view(x, dtype)}, out=view(y, dtype), w=w, b=b, rows=rows(6, actual), n=n, eps=1e-5)
    kernels.launch("norm", args, layer)
    exact = values_of(x, dtype)[:5, :n].astype(np.float64)
    d = exact - exact.mean(1, keepdims=True) if layer else exact
    expected = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * w[:n] + (b[:n] if layer else 0)
    got = values_of(y, dtype)
    assert_near(got[:5, :n], expected, dtype, 20)
    assert not got[:5, n:].any() and (got[5] == 7).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_embed(kernels: Kernels, dtype: str) -> None:
    """Tokens in range, beyond, from the last draw, and rows that bring their hidden state."""
    rng, memory = np.random.default_rng(0), Memory()
    vocab, hidden, cols = 50, 40, 64
    table = memory.put(stored(rng.standard_normal((vocab, cols)), dtype))
    tokens = memory.put(np.array([3, 49, -2, 77, 5, -1, 0], np.int32))
    external = rng.standard_normal((2, hidden)).astype(np.float32)
    y = memory.full((7, cols), np.float32, 7)
    args = make(
        "EmbedArgs",
        out=view(y),
        tokens=tokens,
        last_token=memory.put(np.array([11, 12], np.int32)),
        rows=rows(7),
        vocab=vocab,
        hidden=hidden,
        scale=1.5,
        table=table,
        table_stride=cols,
        table_dtype=DTYPES[dtype],
        n_external=2,
        external_count=memory.put(np.array([2], np.int32)),
        external_row=memory.put(np.array([1, 4], np.int32)),
        external=memory.put(external),
    )
    kernels.launch("embed", args)
    expected = values_of(table, dtype)[[3, 49, 12, 49, 5, 11, 0], :hidden] * np.float32(1.5)
    expected[[1, 4]] = external
    np.testing.assert_array_equal(y[:, :hidden], expected)
    assert not y[:, hidden:].any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 100, 160])
def test_embed_codes(kernels: Kernels, bits: int, group: int) -> None:
    rng, memory = np.random.default_rng(bits + group), Memory()
    weight = random_codes(rng, 48, 160, bits, group, "bf16")
    y = memory.full((3, 160), np.float32, 7)
    embed = make(
        "EmbedArgs",
        out=view(y),
        tokens=memory.put(np.array([0, 47, 21], np.int32)),
        rows=rows(3),
        vocab=48,
        hidden=160,
        scale=0.3,
    )
    kernels.launch("embed_codes", make("EmbedCodesArgs", e=embed, w=pack_codes(memory, weight)))
    np.testing.assert_array_equal(y, weight.values(np.array([0, 47, 21])) * np.float32(0.3))


@pytest.mark.parametrize("kind", list(RopeKind))
@pytest.mark.parametrize("sections", [(), (3, 2, 5), (0, 4, 3)])
@pytest.mark.parametrize("position_rows", [1, 3])
@pytest.mark.parametrize("logn", [0, 100])
def test_rope_table(kernels: Kernels, kind: RopeKind, sections: tuple[int, ...], position_rows: int, logn: int) -> None:
    rng, memory = np.random.default_rng(position_rows), Memory()
    interleaved = bool(sections) and sections[0] == 0
    frequencies = RopeFrequencies(
        kind, plain_frequencies(1e4, 24), plain_frequencies(1e6, 24), 1.25, 3.0, 1e4, original_max=100
    )
    positions = memory.put(rng.integers(0, 2_000_000, (position_rows, 9)).astype(np.int32))
    positions[0, :4] = [0, 98, 99, 100]
    prompt = np.array([1, 50, 500, 7, 3, 2, 1, 1, 99], np.int32)
    y = memory.full((9, 32), np.float32, 7)
    args = make(
        "RopeTableArgs",
        out=view(y),
        inv_freq=memory.put(frequencies.inv_freq),
        long_inv_freq=memory.put(frequencies.long_inv_freq),
        positions=positions,
        history=memory.put(np.maximum(prompt, positions[0] + 1)),
        prompt_len=memory.put(prompt),
        rows=rows(9),
        position_rows=position_rows,
        position_stride=9,
        kind=int(kind),
        half=12,
        original=100,
        sections=sections or (0, 0, 0),
        interleaved=interleaved,
        logn=logn,
        attention=1.25,
        scaling=3.0,
        theta=1e4,
    )
    kernels.launch("rope_table", args)
    cos, sin = rope_table(frequencies, positions, prompt, sections, interleaved, logn)
    np.testing.assert_allclose(y[:, :24], np.concatenate([cos, sin], 1), rtol=2.0**-22, atol=2.0**-23)
    assert not y[:, 24:].any()


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["f32", "bf16", "f16", "u8", "u4"])
@pytest.mark.parametrize(("size", "rotary"), [(20, 20), (64, 32), (256, 256)])
@pytest.mark.parametrize("style", ["neox", "interleaved", "bare", "none"])
def test_rope_kv(kernels: Kernels, cache: str, size: int, rotary: int, style: str) -> None:
    """Head norms and rope of q and k, and what the cache holds. Codes: as they come, so that they can be compared.

    "bare": rope without norms; "none": neither.
    """
    rng, memory = np.random.default_rng(size), Memory()
    tokens, hq, hkv, block = 5, 3, 2, 16
    head = -(-size // 8) * 8
    plain, has_norms = style == "none", style not in ("none", "bare")
    q, k, v = (memory.put(rng.standard_normal((tokens, h * head)).astype(np.float32)) for h in (hq, hkv, hkv))
    if plain:
        v[2, 1] = np.inf
    before = [x.copy().reshape(tokens, -1, head)[..., :size] for x in (q, k, v)]
    pool, data = pool_of(memory, cache, hkv, head, block, 3)
    angles = rng.uniform(0, 6, (tokens, rotary // 2))
    table = memory.put(np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    norms = [memory.put(rng.standard_normal(size).astype(np.float32)) for _ in range(2)]
    slots = np.array([2 * block + 15, 0, 17, -1, 3], np.int32)
    args = make(
        "HeadsArgs",
        **{"q": view(q), "k": view(k), "v": view(v), "eps": 1e-6, "Hq": hq, "Hkv": hkv, "D": size, "head": head},
        **({} if plain else {"table": view(table)}),
        **({"q_norm": norms[0], "k_norm": norms[1]} if has_norms else {}),
        rotary=rotary,
        interleaved=style == "interleaved",
        kv=pool,
        layer=1,
        kv_slot=memory.put(slots),
        rows=rows(tokens),
    )
    kernels.launch("heads", args)

    def turned(x: Array, norm: Array) -> Array:
        if plain:
            return x
        x = x.astype(np.float64)
        if has_norms:
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * norm
        half = rotary // 2
        first, second = np.s_[:half], np.s_[half:rotary]
        if style == "interleaved":
            first, second = np.s_[0:rotary:2], np.s_[1:rotary:2]
        a, b = x[..., first].copy(), x[..., second].copy()
        cos, sin = (table[:, None, part] for part in (np.s_[:half], np.s_[half:]))
        x[..., first], x[..., second] = a * cos - b * sin, b * cos + a * sin
        return x

    assert_near(q.reshape(tokens, hq, head)[..., :size], turned(before[0], norms[0]), "f32", 30)
    cached = Cached(pool, data, cache, 1)
    for which, x in enumerate((turned(before[1], norms[1]), before[2])):
        for t, slot in ((t, slot) for t, slot in enumerate(slots) if slot >= 0):
            for h in range(hkv):
                assert_cached(cached, which, h, slot, x[t, h].astype(np.float32), exactly=plain)
    untouched = np.ones(3 * block, bool)
    untouched[slots[slots >= 0]] = False
    assert (
        cached.rows.reshape(3, 2 * hkv, block, -1).transpose(0, 2, 1, 3).reshape(3 * block, -1)[untouched] == 0xFF
    ).all()
    assert (data.reshape(3, 2, -1)[:, 0] == 0xFF).all()


class Cached:
    """One layer of a pool: the bytes of each row of K and V, and the grids of codes."""

    def __init__(self, pool: Any, data: Array, cache: str, layer: int) -> None:
        self.cache, self.tokens, self.heads = cache, pool.block_tokens, pool.heads
        bits = {"f32": 32, "u8": 8, "u4": 4}.get(cache, 16)
        rows_of_block = 2 * pool.heads * pool.block_tokens
        whole = data.reshape(len(data), 2, -1)[:, layer]
        size = pool.head_size * bits // 8
        self.rows = whole[:, : rows_of_block * size].reshape(len(data), rows_of_block, size)
        self.grids = np.ascontiguousarray(whole[:, rows_of_block * size :]).view(np.float32).reshape(len(data), -1, 2)

    def row(self, which: int, head: int, slot: int) -> tuple[Array, Array]:
        """What a token's head holds: numbers or codes, and the grid."""
        at = slot // self.tokens, (which * self.heads + head) * self.tokens + slot % self.tokens
        raw = self.rows[at]
        grid = self.grids[at] if self.cache[0] == "u" else np.zeros(2, np.float32)
        if self.cache == "u4":
            return np.stack([raw & 15, raw >> 4], 1).reshape(-1), grid
        if self.cache == "u8":
            return raw, grid
        kind: Any = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[self.cache]
        return values_of(raw.view(kind), self.cache), grid


def assert_cached(cached: Cached, which: int, head: int, slot: int, x: Array, *, exactly: bool) -> None:
    """A head of a token is in the cache: rounded, or as codes, whose bits are known where nothing was computed."""
    got, (scale, zero) = cached.row(which, head, slot)
    if cached.cache[0] != "u":
        with np.errstate(over="ignore"):
            expected = rounded(x, cached.cache)
        finite = np.isfinite(expected)
        assert_near(got[: len(x)][finite], expected[finite], cached.cache, 30)
        assert (got[: len(x)][~finite] == expected[~finite]).all() and not got[len(x) :].any()
        return
    assert (got[len(x) :] == zero).all()
    if exactly:
        values, scales = kept(x, cached.cache)
        np.testing.assert_array_equal(got[: len(x)] - zero, values)
        np.testing.assert_array_equal(scale, scales)
    else:
        np.testing.assert_allclose((got[: len(x)] - zero) * scale, x, rtol=0, atol=0.51 * scale + 1e-5)


def test_kv_clear(kernels: Kernels) -> None:
    memory = Memory()
    pool, data = pool_of(memory, "u4", 1, 8, 16, 5)
    count = memory.put(np.array([2], np.int32))
    blocks = memory.put(np.array([3, 0, 1], np.int32))
    kernels.launch("kv_clear", make("KvClearArgs", kv=pool, blocks=blocks, count=rows(3, count)))
    assert not data[[0, 3]].any() and (data[[1, 2, 4]] == 0xFF).all()


# ---- elementwise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", ["silu", "gelu_tanh", "gelu_erf", "mul", "add", "scale", "softcap", "cast", "gate"])
def test_pointwise(kernels: Kernels, dtype: str, op: str) -> None:
    rng, memory = np.random.default_rng(1), Memory()
    a, b = (memory.put(stored(4 * rng.standard_normal((3, 64)), dtype)) for _ in range(2))
    y = memory.put(stored_rows(3, 64, dtype))
    code = {"mul": 1, "add": 2, "scale": 3, "softcap": 4, "cast": 5, "gate": 6}.get(op, 0)
    act = {"silu": 1, "gelu_tanh": 2, "gelu_erf": 3}.get(op, 0)
    fields = {"a": view(a, dtype), "b": view(b, dtype), "out": view(y, dtype)}
    kernels.launch("pointwise", make("PointwiseArgs", **fields, op=code, act=act, factor=2.5, rows=rows(3)))
    u, v = (values_of(x, dtype).astype(np.float64) for x in (a, b))
    expected = {
        "mul": u * v,
        "add": u + v,
        "scale": 2.5 * u,
        "softcap": 2.5 * np.tanh(u / 2.5),
        "cast": u,
        "gate": u / (1 + np.exp(-v[:, :1])),
    }.get(op)
    assert_near(values_of(y, dtype), activation(u, act) if expected is None else expected, dtype, 10)


def test_views_and_gathered_rows(kernels: Kernels) -> None:
    """A column range in, a column range out, rows by number; what lies beside stays."""
    memory = Memory()
    x = memory.put(np.arange(5 * 96, dtype=np.float32).reshape(5, 96))
    y = memory.full((3, 128), np.float32, 7)
    numbers = memory.put(np.array([4, 0, 4], np.int32))
    args = make("GatherArgs", **{"in": view(x, "f32", 32, 32)}, out=view(y, "f32", 64, 32), row=numbers, rows=rows(3))
    kernels.launch("gather_rows", args)
    np.testing.assert_array_equal(y[:, 64:96], x[[4, 0, 4], 32:64])
    assert (y[:, :64] == 7).all() and (y[:, 96:] == 7).all()


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("k", "group", "layout"), [(100, 100, ""), (96, 32, "heads"), (130, 64, "order"), (1500, 1500, "")]
)
def test_quantize(kernels: Kernels, planes: int, dtype: str, k: int, group: int, layout: str) -> None:
    rng, memory = np.random.default_rng(k), Memory()
    cols = -(-k // 24) * 32 if layout == "heads" else -(-k // 32) * 32
    x = rng.standard_normal((4, cols)) * np.exp(rng.standard_normal((4, 1)))
    x[1, :64] = 0
    x[2, 5] = np.nan
    data = memory.put(stored(x, dtype))
    order = np.arange(k)
    if layout == "heads":
        order = order // 24 * 32 + order % 24
    if layout == "order":
        order = rng.permutation(k)
    groups, padded = -(-k // group), -(-group // 64) * 64
    out = memory.full((4, planes * groups * padded), np.int8, 7)
    grid = memory.full((4, 2 * groups + 4), np.float32, 7)
    args = make(
        "QuantizeArgs",
        x=view(data, dtype),
        planes=out,
        planes_stride=out.shape[1],
        grid=grid,
        grid_stride=grid.shape[1],
        grid_cols=grid.shape[1],
        order=memory.put(order.astype(np.int32)) if layout == "order" else None,
        **{"K": k, "group": group, "group_padded": padded, "n_planes": planes},
        head=24 if layout == "heads" else 0,
        padded_head=32 if layout == "heads" else 0,
        rows=rows(4),
    )
    kernels.launch("quantize", args)
    expected = quantize(values_of(data, dtype)[:, order], group, planes)
    np.testing.assert_array_equal(out, to_planes(expected.integers, group, planes))
    np.testing.assert_array_equal(grid[:, :groups], expected.scales)
    np.testing.assert_array_equal(grid[:, groups : 2 * groups].view(np.int32), expected.sums)
    assert not grid[:, 2 * groups :].any()


def test_codes_of_a_weight_are_its_values() -> None:
    """The oracle's own helper: random codes keep their grid."""
    weight = random_codes(np.random.default_rng(0), 16, 64, 4, 32, "f32")
    assert isinstance(weight, QuantizedWeight) and weight.rows.codes.max() <= 15
