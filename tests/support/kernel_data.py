"""Data of the kernel tests: stored numbers, and quantized weights as the CUDA kernels keep them."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulated_kernels import DTYPES, Array, Memory, make
from one_op import rounded, stored

from dashinfer_lite.devices.quant_reference import QuantizedWeight
from dashinfer_lite.graph.program import WeightSpec
from dashinfer_lite.weights.grid import Codes

CELL = 64


def stored_rows(count: int, cols: int, dtype: str, value: float = 7) -> Array:
    """Rows of one value as raw elements."""
    return stored(np.full((count, cols), value), dtype)


def values_of(raw: Array, dtype: str) -> Array:
    """Raw elements as fp32; bf16 comes as its bits."""
    return (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else raw.astype(np.float32)


def random_codes(rng: np.random.Generator, n: int, k: int, bits: int, group: int, scales: Any) -> QuantizedWeight:
    """A weight [n, k] with random codes, zero points and scales, each `group` columns."""
    nowhere = np.full(n, -1, np.int32)
    padded = -(-group // CELL) * CELL
    spec = WeightSpec(
        "linear",
        "w",
        "u8" if bits == 8 else "u4",
        n,
        k,
        group,
        padded,
        (),
        nowhere,
        nowhere,
        quant_group=group,
        scale_dtype=scales,
    )
    largest = 255 if bits == 8 else 15
    groups = spec.groups
    codes = rng.integers(0, largest + 1, (n, k)).astype(np.uint8)
    scale = rounded(rng.uniform(0.01, 0.02, (n, groups)), scales)
    return QuantizedWeight(spec, Codes(codes, scale, rng.integers(0, largest + 2, (n, groups)).astype(np.int16)))


def pack_codes(memory: Memory, weight: QuantizedWeight) -> Any:
    """The weight as the struct Codes, in the order of codes.cuh."""
    spec, (codes, scales, zeros) = weight.spec, weight.rows
    bits = 8 if spec.dtype == "u8" else 4
    padded = np.zeros((spec.n, spec.groups, spec.k_group_padded), np.uint8)
    for g in range(spec.groups):
        part = codes[:, g * spec.quant_group : (g + 1) * spec.quant_group]
        padded[:, g, : part.shape[1]] = part
    units = padded.reshape(spec.n // 16, 2, 8, -1, 4, 16)  # strip, half, n, unit, t, column
    if bits == 8:
        packed: Array = units.transpose(0, 3, 1, 2, 4, 5)
    else:
        split = units.reshape(*units.shape[:5], 2, 2, 4)  # s, b, i
        packed = (split[..., 0, :] | split[..., 1, :] << 4).transpose(0, 3, 2, 4, 1, 5, 6)
    raw = scales if spec.scale_dtype == "f32" else stored(scales, spec.scale_dtype)
    return make(
        "Codes",
        codes=memory.put(packed),
        scales=memory.put(raw.T),
        zeros=memory.put(zeros.T),
        scale_dtype=DTYPES[spec.scale_dtype],
        bits=bits,
        N=spec.n,
        G=spec.groups,
        group=spec.quant_group,
        group_padded=spec.k_group_padded,
    )


def pool_of(memory: Memory, cache: str, heads: int, head: int, tokens: int, blocks: int) -> tuple[Any, Array]:
    """A KvPool of two layers full of ones bits, and its bytes."""
    bits = {"f32": 32, "bf16": 16, "f16": 16, "u8": 8, "u4": 4}[cache]
    layer = 2 * heads * tokens * (head * bits // 8 + (8 if cache[0] == "u" else 0))
    data = memory.full((blocks, 2 * layer), np.uint8, 0xFF)
    fields = {"data": data, "block_bytes": 2 * layer, "layer_bytes": layer, "heads": heads, "head_size": head}
    return make("KvPool", **fields, block_tokens=tokens, dtype=DTYPES[cache]), data
