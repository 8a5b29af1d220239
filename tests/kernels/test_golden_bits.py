"""Stored hashes of what fixed inputs give: a tier that the machine lacks was held to the same ones elsewhere.

Inputs are made with integers alone, so that no library's random numbers or functions have a say. After a deliberate
change of docs/arithmetic.md `DASHINFER_WRITE_BITS=1 pytest tests/kernels/test_golden_bits.py` writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrangements import Array, Text, runner, small
from graphs import Weights
from one_op import Bench, Maker, Span

from dashinfer_lite.graph.program import KvSpec

Opened = Callable[..., Any]
STORED = Path(__file__).with_name("golden_bits.json")
WRITE = bool(os.environ.get("DASHINFER_WRITE_BITS"))


def numbers(seed: int, *shape: int) -> Array:
    """Multiples of 2⁻²³ in [-1, 1): seed and index, mixed by shifts and multiplications."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed * 0x9E3779B9)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ x >> np.uint64(shift)) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(15)
    return ((x >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).reshape(shape)


class IntegerWeights(Weights):
    """Weights of a whole model."""

    @staticmethod
    def _make(name: str, rows: int, columns: int) -> Array:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "little")
        return numbers(seed, rows, columns) / np.float32(4) if columns else 1 + numbers(seed, rows) / np.float32(4)


def linear(device: Any, dtype: str, gated: bool = False) -> Array:
    """Three segments of K, two bands of rows."""
    rows, n, k = 35, 48, 4500
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(k, "bf16" if dtype == "bf16" else "f32"), maker.slot(64)
    weights = [maker.matrix(128 if gated else 64, k, dtype), maker.vector(128 if gated else 64)]
    maker.op("linear", (x_slot,), (y_slot,), weights, act=17 if gated else 0)
    bench = Bench(device, maker)
    bench.matrix(weights[0], numbers(1, 128 if gated else n, k) / np.float32(16))
    bench.vector(weights[1], numbers(2, n))
    bench.put(x_slot, numbers(3, rows, k))
    bench.run(Span(rows))
    return closing(bench, bench.get(y_slot, rows))


def attention(device: Any, cache: Any) -> Array:
    """Rotation and attention of the last rows of 1200 positions, with a window; the others are stored, not computed."""
    length, size, hq, hkv, last = 1200, 48, 4, 2, 5
    blocks = tuple(range(19))
    attrs = {"Hq": hq, "Hkv": hkv, "D": size}

    def bench_of(attend: bool) -> Bench:
        maker = Maker(device.info, tokens=400, kv=KvSpec(1, hkv, size, cache, 64, 19))
        q_slot, k_slot, v_slot, y_slot = (maker.slot(h * maker.pad_head(size)) for h in (hq, hkv, hkv, hq))
        table = maker.slot(size)
        maker.op("rope_table", (), (table,), (maker.vector(size // 2), -1), h=size // 2, attention=1)
        maker.op("rope_kv", (q_slot, k_slot, v_slot, table), (q_slot,), (-1, -1), **attrs, rotary=size)
        if attend:
            maker.op("attention", (q_slot,), (y_slot,), window=1150, scale=0.25, **attrs)
        bench = Bench(device, maker, max_blocks=19)
        bench.vector(0, np.float32(2.0) ** -np.arange(size // 2, dtype=np.float32))
        return bench

    def run(bench: Bench, start: int, stop: int) -> None:
        for slot, heads in enumerate((hq, hkv, hkv)):
            bench.put_heads(slot, 4 * numbers(slot, length, heads, size)[start:stop])
        bench.run(Span(stop - start, start, blocks=blocks), clear=blocks if start == 0 else ())

    filling, bench = bench_of(attend=False), bench_of(attend=True)
    for start in range(0, length - last, 400):
        run(filling, start, min(start + 400, length - last))
    bench.executable.kv_write(blocks, filling.executable.kv_read(blocks))
    filling.close()
    run(bench, length - last, length)
    return closing(bench, bench.get(3, last))


def norm(device: Any, op: str) -> Array:
    """RMS norm or layer norm."""
    maker = Maker(device.info)
    x_slot, y_slot, weights = maker.slot(200), maker.slot(200), [maker.vector(200), maker.vector(200)]
    maker.op(op, (x_slot,), (y_slot,), weights[: 1 + (op == "layer_norm")], cols=200, eps=2.0**-17)
    bench = Bench(device, maker)
    for weight in weights:
        bench.vector(weight, numbers(weight, 200))
    bench.put(x_slot, 3 * numbers(9, 40, 200))
    bench.run(Span(40))
    return closing(bench, bench.get(y_slot, 40))


def activation(device: Any, act: int) -> Array:
    """Over [-16, 16)."""
    maker = Maker(device.info)
    x_slot = maker.slot(1024)
    maker.op("act", (x_slot,), (x_slot,), act=act)
    bench = Bench(device, maker)
    bench.put(x_slot, 16 * numbers(11, 4, 1024))
    bench.run(Span(4))
    return closing(bench, bench.get(x_slot, 4))


def model(device: Any, dtype: str, kv_dtype: str) -> Array:
    """The logits of a two-layer model, prefilled in two chunks and decoded."""
    weights = IntegerWeights()
    with runner(device, small("qwen3", head_dim=32), dtype, kv_dtype, weights=weights) as mine:
        text = Text((np.arange(60) * 37 % 131).tolist(), [2, 0])
        for count in (33, 26, 1):
            mine.run((text, count))
        return text.bits().view(np.float32)


def closing(bench: Bench, result: Array) -> Array:
    bench.close()
    return result


CASES: dict[str, Callable[[Any], Array]] = {
    "linear bf16": lambda device: linear(device, "bf16"),
    "linear f16": lambda device: linear(device, "f16"),
    "linear f32": lambda device: linear(device, "f32"),
    "linear bf16, silu gate": lambda device: linear(device, "bf16", gated=True),
    "rope and attention, bf16 cache": lambda device: attention(device, "bf16"),
    "rope and attention, f32 cache": lambda device: attention(device, "f32"),
    "rope and attention, 8-bit cache": lambda device: attention(device, "u8"),
    "rope and attention, 4-bit cache": lambda device: attention(device, "u4"),
    "rms norm": lambda device: norm(device, "rms_norm"),
    "layer norm": lambda device: norm(device, "layer_norm"),
    "silu": lambda device: activation(device, 1),
    "gelu tanh": lambda device: activation(device, 2),
    "gelu erf": lambda device: activation(device, 3),
    "model bf16": lambda device: model(device, "bf16", "bf16"),
    "model f16": lambda device: model(device, "f16", "f32"),
    "model f32": lambda device: model(device, "f32", "f32"),
}


def digest(values: Array) -> str:
    """Of the numbers as little-endian fp32, rows in order."""
    assert np.isfinite(values).all()
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


if WRITE:

    def test_write(opened: Opened) -> None:
        """The scalar tier says what is right."""
        device = opened("scalar", 1)
        STORED.write_text(json.dumps({name: digest(case(device)) for name, case in CASES.items()}, indent=1) + "\n")


def test_inputs() -> None:
    """Integers make the same numbers everywhere."""
    assert numbers(1, 4).tolist() == [
        -0.21574974060058594,
        -0.26424896717071533,
        -0.9345483779907227,
        0.10693836212158203,
    ]


@pytest.mark.parametrize("case", CASES)
def test_hashes(tier: str, opened: Opened, case: str) -> None:
    assert digest(CASES[case](opened(tier, 2))) == json.loads(STORED.read_text())[case]
