"""The lowered form of a model: flat instructions over slots, and the weights they read.

A `Program` is what a device gets. It mirrors `include/dashinfer_device.h` field by field; `graph/encode.py` turns it
into those structs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

DType = Literal["f32", "f16", "bf16"]
Rows = Literal["T", "R"]


@dataclass(frozen=True, slots=True)
class Part:
    """A source tensor of a weight, or the rows [start, stop) of one."""

    name: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One weight of a program: where its rows come from and how they are laid out.

    `kind` "linear" and "table" are [n, k] matrices, "vector" is [n] in fp32. `n` counts the padded rows and
    `row_map` gives, for each of them, (part, row) as two int32 arrays; part -1 is a row of zeros. `k` is the source
    row's length in groups of `k_group`, each padded by the device to `k_group_padded`. `value` is a constant
    computed at build time (an inverse-frequency vector) in place of parts. `offset` is added to every real element
    (Gemma's 1 + w); `normalize` L2-normalizes each source row (Baichuan's NormHead).
    """

    kind: Literal["linear", "table", "vector"]
    name: str
    dtype: DType
    n: int
    k: int
    k_group: int
    k_group_padded: int
    parts: tuple[Part, ...]
    part_index: np.ndarray
    row_index: np.ndarray
    value: np.ndarray | None = None
    offset: float = 0.0
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """An activation [rows, cols]; `parent` and `first_col` make it a column range of another slot."""

    dtype: DType
    rows: Rows
    cols: int
    parent: int = -1
    first_col: int = 0
    offset: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Instr:
    """One instruction; `op` is a key of `graph.ops.OPS`, ints and floats are those of `dashinfer_device.h`."""

    op: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    sync: bool = True


@dataclass(frozen=True, slots=True)
class KvSpec:
    """The KV cache a program needs; `head_size` is the model's, unpadded."""

    layers: int
    heads: int
    head_size: int
    dtype: DType
    block_tokens: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Capacities fixed at load: tokens a step, logit rows a tail tile, sequences a step, logprob alternatives a row."""

    max_tokens: int = 512
    tail_rows: int = 64
    max_seqs: int = 64
    max_logprobs: int = 32


@dataclass(frozen=True, slots=True)
class Program:
    """The body runs once a step over T tokens; the tail runs on tiles of `limits.tail_rows` logit rows."""

    slots: tuple[Slot, ...]
    body: tuple[Instr, ...]
    tail: tuple[Instr, ...]
    weights: tuple[WeightSpec, ...]
    kv: KvSpec
    limits: Limits
    arena_bytes: int
    vocab_size: int
    hidden_size: int
    history_rope: bool = False
    position_rows: int = 1
    notes: dict[str, str] = field(default_factory=dict)

    def dump(self) -> str:
        """The program as a table that a person can read."""
        from dashinfer_lite.graph.dump import dump_program

        return dump_program(self)
