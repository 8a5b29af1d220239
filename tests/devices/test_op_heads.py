"""Ops on attention heads: the rope table, head norms, rotation, and rope_kv that does all of it with the store."""

from __future__ import annotations

import math
from typing import Any

import exact
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_op import Array, Maker, Span, assert_close, bf16, each, examples, rounded

from dashinfer_lite.graph.program import KvSpec

UNIT = 2.0**-24
ROWS = st.integers(1, 70)
SIZES = st.integers(4, 128).map(lambda half: 2 * half)
SEEDS = st.integers(0, 2**32 - 1)


def turned(x: Array, table: Array, rotary: int, interleaved: bool) -> Array:
    """x[T,heads,D] with its first `rotary` columns rotated by table[T, cos | sin], in float64."""
    y = x.astype(np.float64)
    half = rotary // 2
    cos, sin = table[:, None, :half].astype(np.float64), table[:, None, half:rotary].astype(np.float64)
    first, second = (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (slice(0, half), slice(half, rotary))
    y[..., first], y[..., second] = (
        y[..., first] * cos - y[..., second] * sin,
        y[..., second] * cos + y[..., first] * sin,
    )
    return y


def normed(x: Array, w: Array, eps: float) -> Array:
    """RMS norm of each head in float64."""
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(eps)) * w


def angles(rng: np.random.Generator, rows: int, rotary: int) -> Array:
    """cos | sin of random angles."""
    angle = rng.uniform(0, 7, (rows, rotary // 2))
    return np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


@examples(25)
@given(rows=ROWS, heads=st.integers(1, 5), size=SIZES, seed=SEEDS)
def test_head_norm(device: Any, rows: int, heads: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rounded(rng.standard_normal((rows, heads, size)), "f32"), rounded(rng.standard_normal(size), "f32")
    expected = normed(x, w, 1e-6)
    maker = Maker(device.info)
    x_slot, weight = maker.slot(heads * maker.pad_head(size)), maker.vector(maker.pad_head(size))
    maker.op("head_norm", (x_slot,), (x_slot,), (weight,), heads=heads, D=size, eps=1e-6)
    with each(device, maker) as benches:
        for bench in benches:
            bench.vector(weight, w)
            bench.put_heads(x_slot, x)
            bench.run(Span(rows))
            assert_close(
                bench.get_heads(x_slot, rows, heads, size), expected, (size / 16 + 12) * UNIT * np.abs(expected)
            )


@examples(30)
@given(rows=ROWS, heads=st.integers(1, 5), size=SIZES, share=st.floats(0, 1), interleaved=st.booleans(), seed=SEEDS)
def test_rope(device: Any, rows: int, heads: int, size: int, share: float, interleaved: bool, seed: int) -> None:
    """Whole heads and partial ones, halves and interleaved pairs; columns beyond the rotary ones stay as they are."""
    rng = np.random.default_rng(seed)
    rotary = max(2, int(size * share) // 2 * 2)
    x, table = rounded(rng.standard_normal((rows, heads, size)), "f32"), angles(rng, rows, rotary)
    expected = turned(x, table, rotary, interleaved)
    maker = Maker(device.info)
    x_slot, table_slot = maker.slot(heads * maker.pad_head(size)), maker.slot(rotary)
    maker.op("rope", (x_slot, table_slot), (x_slot,), heads=heads, D=size, rotary=rotary, style=int(interleaved))
    with each(device, maker) as benches:
        for bench in benches:
            bench.put_heads(x_slot, x)
            bench.put(table_slot, table)
            bench.run(Span(rows))
            got = bench.get_heads(x_slot, rows, heads, size)
            assert_close(got, expected, 2 * UNIT * 2 * np.abs(x).max())
            np.testing.assert_array_equal(got[..., rotary:], x[..., rotary:])


@examples(30)
@given(
    rows=ROWS,
    shape=st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
    size=SIZES,
    norms=st.tuples(st.booleans(), st.booleans()),
    rope=st.sampled_from(["", "neox", "interleaved"]),
    cache=st.sampled_from(["f32", "bf16", "u8", "u4"]),
    seed=SEEDS,
)
def test_rope_kv(
    device: Any,
    rows: int,
    shape: tuple[int, int],
    size: int,
    norms: tuple[bool, bool],
    rope: str,
    cache: str,
    seed: int,
) -> None:
    """q and k are normed and rotated as alone; what attention then reads is what was stored.

    Every row sees its own position alone (a window of 1), so that attention returns the stored v exactly; integers come
    back times their scale in bf16, as which the only probability is.
    """
    rng = np.random.default_rng(seed)
    (hq, hkv), rotary = shape, size // 2 // 2 * 2 or 2
    q, k, v = (rounded(rng.standard_normal((rows, heads, size)), "f32") for heads in (hq, hkv, hkv))
    w_q, w_k = (rounded(rng.standard_normal(size), "f32") for _ in range(2))
    table = angles(rng, rows, rotary)

    def expected(x: Array, w: Array, norm: bool) -> Array:
        y = normed(x, w, 1e-5) if norm else x.astype(np.float64)
        return turned(y, table, rotary, rope == "interleaved") if rope else y

    maker = Maker(device.info, kv=KvSpec(2, hkv, size, cache, 32, 4))  # type: ignore[arg-type]
    slots = [maker.slot(heads * maker.pad_head(size)) for heads in (hq, hkv, hkv)]
    y_slot = maker.slot(hq * maker.pad_head(size))
    table_slot = maker.slot(rotary)
    weights = [maker.vector(maker.pad_head(size)) if norm else -1 for norm in norms]
    attrs: dict[str, Any] = {"layer": 1, "Hq": hq, "Hkv": hkv, "D": size}
    inputs = [*slots, table_slot] if rope else slots
    maker.op(
        "rope_kv",
        inputs,
        slots[:1],
        weights,
        **attrs,
        rotary=rotary if rope else 0,
        style=int(rope == "interleaved"),
        eps=1e-5,
    )
    maker.op("attention", slots[:1], (y_slot,), window=1, scale=0.5, **attrs)
    with each(device, maker) as benches:
        for bench in benches:
            for weight, values in zip(weights, (w_q, w_k), strict=True):
                if weight >= 0:
                    bench.vector(weight, values)
            for slot, values in zip(slots, (q, k, v), strict=True):
                bench.put_heads(slot, values)
            bench.put(table_slot, table)
            bench.run(Span(rows, blocks=(2, 0, 3)), clear=(2, 0, 3))
            for slot, x, w, norm in ((slots[0], q, w_q, norms[0]), (slots[1], k, w_k, norms[1])):
                want = expected(x, w, norm)
                tolerance = (size / 16 + 16) * UNIT * np.abs(want).max()
                assert_close(bench.get_heads(slot, rows, len(x[0]), size), want, tolerance)
            got = bench.get_heads(y_slot, rows, hq, size)
            values, scales = exact.kept(v, cache)
            np.testing.assert_array_equal(got, np.repeat(values * bf16(scales)[..., None], hq // hkv, axis=1))


# ---- the table -------------------------------------------------------------------------------------------------------


@examples(25)
@given(
    half=st.integers(1, 128),
    rows=ROWS,
    factor=st.sampled_from([1.0, 1.2]),
    far=st.sampled_from([50, 131072, 2**24 - 71]),
    seed=SEEDS,
)
def test_rope_table(device: Any, half: int, rows: int, factor: float, far: int, seed: int) -> None:
    """cos and sin of the angle that is rounded to fp32 once; good to a unit of the last place at any position."""
    rng = np.random.default_rng(seed)
    inverse = rounded(10000.0 ** -(np.arange(half) / half), "f32")
    positions = rng.integers(0, far, rows).astype(np.int32)
    angle = (positions[:, None].astype(np.float32) * inverse).astype(np.float64)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], 1) * np.float32(factor)
    maker = Maker(device.info)
    y_slot, weight = maker.slot(2 * half), maker.vector(half)
    maker.op("rope_table", (), (y_slot,), (weight, -1), h=half, attention=factor)
    with each(device, maker) as benches:
        for bench in benches:
            bench.vector(weight, inverse)
            bench.poison(y_slot, rows)
            bench.run(Span(rows, positions=positions[None]))
            got = bench.get(y_slot, rows)
            assert_close(got[:, : 2 * half], expected, 2 * UNIT * factor)
            assert not got[:, 2 * half :].any()


@pytest.mark.parametrize("interleaved", [False, True])
@examples(30)
@given(sections=st.tuples(*[st.integers(1, 20)] * 3), rows=ROWS, given_rows=st.integers(1, 3), seed=SEEDS)
def test_three_position_rows(
    device: Any, interleaved: bool, sections: tuple[int, int, int], rows: int, given_rows: int, seed: int
) -> None:
    """Each section of the frequencies turns by its own row of positions; a row that the step lacks is row 0."""
    rng = np.random.default_rng(seed)
    half = sum(sections)
    inverse = rounded(rng.uniform(0.01, 1, half), "f32")
    positions = rng.integers(0, 1000, (given_rows, rows)).astype(np.int32)
    row_of = np.repeat([0, 1, 2], sections)
    if interleaved:
        row_of = np.array([j % 3 if j < 3 * sections[j % 3] else 0 for j in range(half)])
    row_of[row_of >= given_rows] = 0
    angle = (positions[row_of].T.astype(np.float32) * inverse).astype(np.float64)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    maker = Maker(device.info)
    y_slot, weight = maker.slot(2 * half), maker.vector(half)
    named = {f"section{i}": section for i, section in enumerate(sections)}
    maker.op("rope_table", (), (y_slot,), (weight, -1), h=half, attention=1.0, interleaved=int(interleaved), **named)
    with each(device, maker) as benches:
        for bench in benches:
            bench.vector(weight, inverse)
            bench.run(Span(rows, positions=positions))
            assert_close(bench.get(y_slot, rows)[:, : 2 * half], expected, 2 * UNIT)


@pytest.mark.parametrize("kind", [1, 2, 3])
@examples(10)
@given(
    prompts=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    starts=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    seed=SEEDS,
)
def test_frequencies_that_depend_on_the_length(
    device: Any, kind: int, prompts: tuple[int, int], starts: tuple[int, int], seed: int
) -> None:
    """Dynamic NTK and long rope take the larger of prompt length and position + 1, token by token; kind 3 the prompt's.

    logn makes rows from position 100 on larger.
    """
    half, original, factor, theta, count = 16, 64, 4.0, 10000.0, 20
    inverse = rounded(theta ** -(np.arange(half) / half), "f32")
    longer = rounded(inverse / np.random.default_rng(seed).uniform(1, 8, half), "f32")
    rows = []
    for start, prompt in zip(starts, prompts, strict=True):
        for position in range(start, start + count):
            n = prompt if kind == 3 else max(prompt, position + 1)
            used = inverse.astype(np.float64)
            if n > original:
                growth = factor * n / original - (factor - 1)
                if kind == 3:
                    growth = 2 ** (math.ceil(math.log2(n / original)) + 1) - 1
                base = theta * growth ** (half / (half - 1))
                used = longer if kind == 2 else base ** -(np.arange(half) / half)
            rows.append(position * used.astype(np.float64))
    angle = np.array(rows)
    at = np.concatenate([np.arange(start, start + count) for start in starts])
    gain = np.maximum(np.log(at + 1) / np.log(100), 1)[:, None]
    expected = gain * np.concatenate([np.cos(angle), np.sin(angle)], 1)
    maker = Maker(device.info)
    y_slot, short, long = maker.slot(2 * half), maker.vector(half), maker.vector(half)
    maker.op(
        "rope_table",
        (),
        (y_slot,),
        (short, long),
        kind=kind,
        h=half,
        original=original,
        attention=1,
        scaling=factor,
        theta=theta,
        logn=100,
    )
    with each(device, maker) as benches:
        for bench in benches:
            bench.vector(short, inverse)
            bench.vector(long, longer)
            bench.run(*(Span(count, start, prompt_len=prompt) for start, prompt in zip(starts, prompts, strict=True)))
            assert_close(
                bench.get(y_slot, 2 * count)[:, : 2 * half], expected, 5 * UNIT * (1 + np.tile(np.abs(angle), 2))
            )
