"""The lowered form of a model: flat instructions over slots, and the weights they read.

A `Program` is what a device gets. It mirrors `include/dashinfer_device.h` field by field; `graph/encode.py` turns it
into those structs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from dashinfer_lite.weights.grid import ScaleDType

DType = Literal["f32", "f16", "bf16", "i8", "u8", "u4"]
Rows = Literal["T", "R", "E"]


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

    A quantized matrix has dtype "u8" or "u4": each `quant_group` elements of k (the last group may be short) have a
    scale, kept as `scale_dtype`, and a zero point, and are padded to `k_group_padded`, a multiple of 64.
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
    quant_group: int = 0
    scale_dtype: ScaleDType = "f32"

    @property
    def groups(self) -> int:
        """Scales of a row; 0 where the weight is not quantized."""
        return -(-self.k // self.quant_group) if self.quant_group else 0

    @property
    def k_padded(self) -> int:
        """Elements of a row as the device keeps it."""
        return -(-self.k // self.k_group) * self.k_group_padded


@dataclass(frozen=True, slots=True)
class Slot:
    """An activation [rows, cols]; `parent` and `first_col` make it a column range of another slot.

    Rows are "T" tokens, "R" logit rows, or "E" a row for each token and each of its experts: row t · k + j is token t
    at its j-th expert.

    A slot of dtype "i8" holds the int8 planes of a quantized value: cols counts bytes, planes · padded K.
    """

    dtype: DType
    rows: Rows
    cols: int
    parent: int = -1
    first_col: int = 0
    offset: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Instr:
    """One instruction; `op` is a key of `graph.ops.OPS`, ints and floats are those of `dashinfer_device.h`.

    A slot or weight of -1 is an operand that is missing.
    """

    op: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    sync: bool = True


@dataclass(frozen=True, slots=True)
class KvSpec:
    """The KV cache a program needs; `head_size` is the model's, unpadded.

    `host_blocks` hold copies of blocks in host memory, on devices whose own memory is another one.
    """

    layers: int
    heads: int
    head_size: int
    dtype: DType
    block_tokens: int
    blocks: int
    host_blocks: int = 0

    @property
    def is_quantized(self) -> bool:
        """Whether the cache holds codes, each token's and head's with a scale and a zero point."""
        return self.dtype in ("u8", "u4")


@dataclass(frozen=True, slots=True)
class Limits:
    """Capacities fixed at load: tokens a step, logit rows a tail tile, sequences a step, logprob alternatives a row.

    `experts_per_token` is the model's, and so is filled in by lowering; 0 where there are no experts.
    """

    max_tokens: int = 512
    tail_rows: int = 64
    max_seqs: int = 64
    max_logprobs: int = 32
    experts_per_token: int = 0

    def capacity(self, rows: Rows) -> int:
        """The most rows of a slot."""
        return {"T": self.max_tokens, "R": self.tail_rows, "E": self.max_tokens * self.experts_per_token}[rows]


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """A prompt whose context sees itself as a whole, and whose answer fills a gap in it (GLM, arXiv:2103.10360).

    The context ends before the first token `begin`. The gap is the first token of `gaps` that the prompt holds, the
    earlier of them counting first. Position row 0 counts the context's tokens and stays at the gap from `begin` on;
    row 1 is 0 in the context and counts 1, 2, 3 … from `begin` on.
    """

    begin: int
    gaps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """The body runs once a step over T tokens; the tail runs on tiles of `limits.tail_rows` logit rows.

    The keys of a prompt of more than `history_rope` tokens depend on its length; 0: they never do. `prefix` says how
    the tokens of a prompt stand where they are not simply numbered.
    """

    slots: tuple[Slot, ...]
    body: tuple[Instr, ...]
    tail: tuple[Instr, ...]
    weights: tuple[WeightSpec, ...]
    kv: KvSpec
    limits: Limits
    arena_bytes: int
    vocab_size: int
    hidden_size: int
    history_rope: int = 0
    position_rows: int = 1
    prefix: PrefixRule | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def dump(self) -> str:
        """The program as a table that a person can read."""
        from dashinfer_lite.graph.dump import dump_program

        return dump_program(self)
