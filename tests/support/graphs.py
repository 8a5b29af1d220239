"""Graphs for tests of the compiler: models written with the builder, weights made up by name, one batch to run."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from stepping import Loop

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.weights import TensorInfo
from dashinfer_lite.weights.loader import load_weights

CONFIG = SimpleNamespace(vocab=37, hidden=24, inner=20, heads=4, kv_heads=2, size=6, layers=2, eps=1e-5)
LIMITS = Limits(max_tokens=32, tail_rows=5, max_seqs=4)
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [35, 8, 9], [7, 9, 3, 2, 3, 8])


class Weights:
    """A weight reader that makes up any tensor that a program asks for; equal names and shapes give equal values."""

    def __init__(self, **fixed: np.ndarray) -> None:
        self.tensors: dict[str, np.ndarray] = dict(fixed)

    def provide(self, program: Program) -> Weights:
        """Makes all tensors of the program."""
        for spec in program.weights:
            for at, part in enumerate(spec.parts):
                rows = part.stop or int(spec.row_index[spec.part_index == at].max()) + 1
                known = self.tensors.get(part.name)
                if known is None or len(known) < rows:
                    self.tensors[part.name] = self._make(part.name, rows, 0 if spec.kind == "vector" else spec.k)
        return self

    @staticmethod
    def _make(name: str, rows: int, columns: int) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal((rows, columns) if columns else rows)
        return np.asarray(values / np.sqrt(columns) * 1.5 if columns else 1 + 0.2 * values, np.float32)

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        values = self.tensors[name]
        return TensorInfo(name, "f32", values.shape, Path("memory"), 0, values.nbytes)

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.tensors[name][start:stop]

    def close(self) -> None:
        pass


def transformer(g: Graph, c: Any) -> None:
    """Head norms, biases on some projections, a plain and a gated MLP, tied head: something for every pass."""
    x = g.embed("embed", c.vocab, c.hidden)
    table = g.rope_table({"rope_type": "default", "rope_theta": 100.0}, c.size, 64)
    for i in range(c.layers):
        with g.scope(f"layers.{i}"):
            h = g.rms_norm(x, "norm1", c.eps)
            q = g.linear(h, "q", heads=(c.heads, c.size), bias=True)
            k = g.linear(h, "k", heads=(c.kv_heads, c.size))
            v = g.linear(h, "v", heads=(c.kv_heads, c.size), bias=True)
            q, k = g.head_norm(q, "q_norm", c.eps), g.head_norm(k, "k_norm", c.eps)
            y = g.attention(g.rope(q, table), g.rope(k, table), v, window=4 if i else None)
            x = x + g.linear(y, "o", c.hidden)
            h = g.rms_norm(x, "norm2", c.eps)
            gated = g.silu(g.linear(h, "gate", c.inner, bias=True)) * g.linear(h, "up", c.inner)
            x = x + g.linear(gated, "down", c.hidden, bias=True)
            h = g.layer_norm(x, "norm3", c.eps)
            x = g.linear(g.act(g.linear(h, "fc1", c.inner), "gelu_tanh"), "fc2", c.hidden) + x
    g.logits(g.rms_norm(x, "norm", c.eps), "head", c.vocab, tied="embed", scale=0.5, softcap=20.0)


def run(
    model: Any,
    config: Any,
    weights: Weights,
    passes: Any,
    *,
    align: int = 1,
    dtype: Any = "f32",
    kv_dtype: Any = "f32",
    quant: Any = None,
) -> tuple[np.ndarray, Program]:
    """Logits of all rows of a batch in two chunks, and the program."""
    device = ReferenceDevice(col_align=align, head_align=align)
    program = build(
        model,
        config,
        device.info,
        dtype=dtype,
        kv_dtype=kv_dtype,
        limits=LIMITS,
        blocks=8,
        block_tokens=8,
        passes=passes,
        quant=quant,
    )
    executable = device.create(program)
    load_weights(program, weights.provide(program), executable)
    loop = Loop(executable, program)
    sequences = [loop.add(prompt, 16) for prompt in PROMPTS]
    loop.step([(s, s.pending[:4]) for s in sequences])
    loop.step([(s, s.pending) for s in sequences if s.length < len(s.prompt)])
    return np.concatenate([np.stack(s.logits) for s in sequences]), program
