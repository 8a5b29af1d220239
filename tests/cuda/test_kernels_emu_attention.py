"""CUDA attention against float64: every kernel and cache, masks, splits and their merge, head sizes, shared work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from emulated_kernels import Array, Kernels, Memory, chip, launch_of, make, rows, view
from kernel_data import pool_of, stored_rows, values_of
from one_op import rounded, stored

from dashinfer_lite.devices.kv_reference import kept

SPLIT = 256  # kAttentionSplit
UNIT = 2.0**-24


@dataclass
class Case:
    """Sequences as (tokens before, new tokens), what the model has, and the chip."""

    sequences: list[tuple[int, int]]
    heads: tuple[int, int] = (4, 2)
    size: int = 64
    cache: str = "f32"
    arch: int = 80
    decodes: bool = False
    split: bool = False
    window: int = 0
    softcap: float = 0.0
    biased: bool = False  # slopes and sinks
    bidirectional: int = 0
    block_tokens: int = 16
    kernel: str = ""
    memory: Memory = field(default_factory=Memory)


EVERYTHING = [(37, 3), (0, 20), (300, 1)]
CASES = [
    Case([(0, 5), (33, 3)], size=20),
    Case(EVERYTHING, (6, 2), 80, window=70, biased=True),
    Case([(3, 40)], (3, 3), 64, bidirectional=33, softcap=20.0),
    Case([(600, 1), (255, 2)], (14, 2), 128, decodes=True, window=301, block_tokens=64),
    Case([(20, 2)], (2, 1), 256, softcap=5.0, biased=True),
]
CACHES = ["f32", "bf16", "f16", "u8", "u4"]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("tensor_cores", [False, True])
def test_attention(kernels: Kernels, case: int, cache: str, split: bool, tensor_cores: bool) -> None:
    if cache == "f32" and tensor_cores:
        pytest.skip("fp32 has none")
    fields = {name: value for name, value in vars(CASES[case]).items() if name != "memory"}
    arch = kernels.arch if tensor_cores else 60
    check(kernels, Case(**{**fields, "cache": cache, "split": split, "arch": arch}))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(10))
def test_random_attention(kernels: Kernels, batch: int) -> None:
    for seed in range(20 * batch, 20 * batch + 20):
        check(kernels, random_case(seed, kernels.arch))


def random_case(seed: int, arch: int) -> Case:
    """Any mixture of what a model and a step may have, with tensor cores or without."""
    rng = np.random.default_rng(seed)
    groups = [(1, 1), (4, 2), (5, 1), (3, 3), (16, 1), (14, 2), (33, 1)]
    return Case(
        [(int(rng.integers(0, 300)), int(rng.integers(1, 60))) for _ in range(rng.integers(1, 4))],
        groups[rng.integers(len(groups))],
        int(rng.integers(4, 129)) * 2,
        CACHES[rng.integers(5)],
        int(rng.choice([60, arch])),
        bool(rng.integers(2)),
        bool(rng.integers(2)),
        int(rng.choice([0, 0, 1, 17, 64, 301])),
        float(rng.choice([0, 20])),
        bool(rng.integers(2)),
        int(rng.choice([0, 0, 9, 33])),
        int(rng.choice([16, 32, 48])),
    )


@pytest.mark.parametrize(("arch", "cache"), [(60, "f32"), (60, "bf16"), (60, "u8")])
def test_a_rows_bits_do_not_depend_on_how_work_is_shared(kernels: Kernels, arch: int, cache: str) -> None:
    """Split or whole, in a chunk or alone: the kernel without tensor cores gives the same bits."""
    whole = run(kernels, Case([(500, 30)], cache=cache, arch=arch))[0]
    split = run(kernels, Case([(500, 30)], cache=cache, arch=arch, split=True))[0]
    np.testing.assert_array_equal(whole, split)
    alone = run(kernels, Case([(500, 30)], cache=cache, arch=arch), only=(17, 18))[0]
    np.testing.assert_array_equal(whole[17:18], alone[17:18])


def check(kernels: Kernels, case: Case) -> None:
    """Compares with float64 within what rounding may do."""
    got, q, k, v, slopes, sinks = run(kernels, case)
    first = 0
    for b, (before, new) in enumerate(case.sequences):
        expected, bound = oracle(case, before, new, q[first : first + new], k[b], v[b], slopes, sinks)
        assert (np.abs(got[first : first + new] - expected) <= bound).all(), (case, b)
        first += new


def run(kernels: Kernels, case: Case, only: tuple[int, int] | None = None) -> tuple[Array, ...]:
    """Fills a cache and attends; (y[T,Hq,D], q, [k], [v], slopes, sinks). `only` asks for a range of rows alone."""
    rng, memory = np.random.default_rng(7), case.memory
    (hq, hkv), size = case.heads, case.size
    head = -(-size // 8) * 8
    totals = [before + new for before, new in case.sequences]
    table, blocks = block_table(rng, totals, case.block_tokens)
    pool, _ = pool_of(memory, case.cache, hkv, head, case.block_tokens, blocks)
    k, v = ([rng.standard_normal((n, hkv, size)).astype(np.float32) for n in totals] for _ in range(2))
    for b, total in enumerate(totals):
        at = np.arange(total)
        slots = (table[b][at // case.block_tokens] * case.block_tokens + at % case.block_tokens).astype(np.int32)
        held = [memory.put(padded(x[b], head)) for x in (k, v)]
        fields = {"k": view(held[0]), "v": view(held[1]), "Hkv": hkv, "D": size, "head": head}
        args = make("HeadsArgs", **fields, kv=pool, layer=1, kv_slot=memory.put(slots), rows=rows(total))
        kernels.launch("heads", args)

    where = chip(case.arch)
    dtype = {"bf16": "bf16", "f16": "f16"}.get(case.cache, "f32")
    tokens = sum(new for _, new in case.sequences)
    q = memory.put(stored(padded(rng.standard_normal((tokens, hq, size)), head), dtype))
    y = memory.put(stored_rows(tokens, hq * head, dtype))
    slopes, sinks = (memory.put(x.astype(np.float32)) for x in (2.0 ** -rng.uniform(1, 8, hq), rng.standard_normal(hq)))
    wants_mma = on_tensor_cores(case)
    tile = 64 if wants_mma and not case.decodes else 16
    works, merges, parts = plan(case, tile, only)
    part_rows = max(parts, 1) * hkv * tile
    offsets = np.cumsum([0] + [new for _, new in case.sequences]).astype(np.int32)
    held_work, held_merges = memory.put(works), memory.put(merges)
    fields = {
        "q": view(q, dtype),
        "out": view(y, dtype),
        "kv": pool,
        "layer": 1,
        **{"Hq": hq, "Hkv": hkv, "D": size, "window": case.window, "scale": size**-0.5, "softcap": case.softcap},
        **({"alibi": slopes, "sinks": sinks} if case.biased else {}),
        "q_offset": memory.put(offsets),
        "kv_len": memory.put(np.array(totals, np.int32)),
        "bidirectional": memory.full((len(totals),), np.int32, case.bidirectional) if case.bidirectional else None,
        "block_table": memory.put(table),
        "max_blocks": table.shape[1],
        "work": held_work,
        "works": rows(len(works)),
        "merge": held_merges,
        "merges": rows(len(merges)),
        "part_sum": memory.full((part_rows, head), np.float32, np.nan),
        "part_max": memory.full((part_rows, 2), np.float32, np.nan),
        "tile_rows": tile,
    }
    args = make("AttentionArgs", **fields)
    assert wants_mma == ("attention_fma" not in launch_of("attention", args, where).kernel.decode())
    kernels.launch("attention", args, where)
    if len(merges):
        kernels.launch("attention_merge", args)
    out = values_of(y, dtype).reshape(tokens, hq, head)
    if only is None:
        assert not out[..., size:].any()
    return out[..., :size], values_of(q, dtype).reshape(tokens, hq, head)[..., :size], k, v, slopes, sinks  # type: ignore[return-value]


def on_tensor_cores(case: Case) -> bool:
    """Turing has too little shared memory to decode the largest heads there."""
    return case.cache != "f32" and case.arch >= 70 and not (case.arch == 75 and case.size > 128 and case.decodes)


def plan(case: Case, tile: int, only: tuple[int, int] | None) -> tuple[Array, Array, int]:
    """Pieces of work and merges as int32 rows, and the number of partial results."""
    works: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    part = 0
    group = case.heads[0] // case.heads[1]
    for b, (before, new) in enumerate(case.sequences):
        begin, stop = (only[0] * group, only[1] * group) if only else (0, new * group)
        for row in range(begin, stop, tile):
            count, length = min(tile, stop - row), before + new
            if not case.split:
                works.append((b, row, count, 0, length, -1))
                continue
            splits = -(-length // SPLIT)
            merges.append((b, row, count, part, splits))
            for s in range(splits):
                works.append((b, row, count, s * SPLIT, min(length, (s + 1) * SPLIT), part))
                part += 1
    return np.array(works, np.int32), np.array(merges, np.int32).reshape(-1, 5), part


def block_table(rng: np.random.Generator, totals: list[int], block_tokens: int) -> tuple[Array, int]:
    """Shuffled blocks for each sequence, -1 beyond; and the number of blocks."""
    needed = [-(-total // block_tokens) for total in totals]
    blocks = sum(needed) + 2
    order = rng.permutation(blocks)
    table = np.full((len(totals), max(needed)), -1, np.int32)
    for b, count in enumerate(needed):
        table[b, :count] = order[sum(needed[:b]) :][:count]
    return table, blocks


def padded(x: Array, head: int) -> Array:
    """[T, heads, D] as [T, heads · head] with zeros."""
    whole = np.zeros((*x.shape[:2], head), np.float32)
    whole[..., : x.shape[2]] = x
    return whole.reshape(len(x), -1)


def numbers(x: Array, cache: str) -> Array:
    """What a cache holds in place of x, in float64."""
    if cache == "f16":
        return rounded(x, "f16").astype(np.float64)
    values, scales = kept(x, cache)
    return values.astype(np.float64) * (1 if scales is None else scales[..., None].astype(np.float64))


def oracle(
    case: Case, before: int, new: int, q: Array, k: Array, v: Array, slopes: Any, sinks: Any
) -> tuple[Array, Array]:
    """Attention of a sequence's new tokens in float64, and the bound of the error."""
    only_f16 = case.arch < 80 and on_tensor_cores(case)  # tiles of fp16, whatever the cache has
    operand = "f16" if only_f16 else {"f32": "f32", "f16": "f16"}.get(case.cache, "bf16")
    half_unit = {"f32": UNIT, "f16": 2.0**-11, "bf16": 2.0**-8}[operand]
    out_unit = {"f32": UNIT, "f16": 2.0**-11, "bf16": 2.0**-8}[{"u8": "f32", "u4": "f32"}.get(case.cache, case.cache)]
    tiny = 2.0**-25 if only_f16 else 0.0  # what fp16 loses of a number close to zero
    group = case.heads[0] // case.heads[1]
    u = rounded(q * np.float32(case.size**-0.5), operand).astype(np.float64)
    keys, values = (np.repeat(numbers(x, case.cache), group, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", u, keys)
    error = (case.size / 4 + 20) * UNIT * np.einsum("qhd,khd->hqk", np.abs(u), np.abs(keys))
    error = error + tiny * (np.abs(u).sum(-1).T[:, :, None] + np.abs(keys).sum(-1).T[:, None])
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
        error = error + 16 * UNIT * case.softcap
    at, key_at = np.arange(before, before + new)[:, None], np.arange(before + new)[None]
    if case.biased:
        bias = slopes.astype(np.float64)[:, None, None] * key_at
        scores, error = scores + bias, error + 4 * UNIT * (np.abs(bias) + np.abs(scores))
    seen = (key_at <= at) | ((key_at < case.bidirectional) & (at < case.bidirectional))
    if case.window:
        seen = seen & (key_at > at - case.window)
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    if case.biased:
        top = np.maximum(top, sinks[:, None, None])
    p = np.exp(scores - top)
    p = p / (p.sum(-1, keepdims=True) + (np.exp(sinks[:, None, None] - top) if case.biased else 0))
    y, sizes = (np.einsum("hqk,khd->qhd", p, f(values)) for f in (np.asarray, np.abs))
    spread = (top - np.where(seen, scores, top)).max(-1, keepdims=True).clip(0, 90)
    lost = (2 * np.where(seen, error, 0).max(-1, keepdims=True) + 4 * UNIT * spread).transpose(1, 0, 2)
    rounding = half_unit * (2 if only_f16 else 1)  # of probabilities, and of values
    lost_values = tiny * (1 + np.abs(values).sum(0)[None])
    return y, sizes * (lost + 80 * UNIT + rounding) + lost_values + 2 * max(half_unit, out_unit) * np.abs(y) + 1e-30
