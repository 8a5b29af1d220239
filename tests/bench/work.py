"""What one instruction of a program must read and compute in a step, and into how many pieces the runtime cuts it.

The pieces are those of cpu_kernels/runtime: `ops.cpp` for rows, panels and bands, `attention_plan.cpp` for attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashinfer_lite.cli.bench_cost import weight_bytes, weight_elements
from dashinfer_lite.graph.plan import ITEM_BYTES, kv_token_bytes

if TYPE_CHECKING:
    from dashinfer_lite.graph.program import Instr, Program

CELL = 32  # rows of a band, columns of a panel
TILE_ROWS = 32  # query rows of an attention task
SPLIT = 1024  # cache positions of one
TASK_COST = 512  # what a task costs beyond its products, in products of a row and a position
ROLES = {"q_proj": "qkv", "o_proj": "o", "gate_proj": "gate_up", "down_proj": "down"}


@dataclass(frozen=True, slots=True)
class Load:
    """A step: `sequences` get `tokens` more tokens each, after which the cache holds `context` tokens of each."""

    sequences: int
    tokens: int
    context: int

    @property
    def rows(self) -> int:
        """Tokens of the step."""
        return self.sequences * self.tokens

    def __str__(self) -> str:
        return f"{self.sequences} x {self.tokens} @{self.context}"


@dataclass(frozen=True, slots=True)
class Work:
    """One instruction of one step.

    streamed     bytes of weights and of the KV cache: they come from memory
    touched      bytes of activations read and written: they mostly stay in caches
    operations   of products, in units that the matrix unit does at its bf16 rate (a product of int8 counts half)
    pieces       relative costs of what different threads may do at the same time
    grid         (panels, bands) of a product, which threads share as a grid
    """

    streamed: float
    touched: float
    operations: float
    pieces: tuple[float, ...] = ()
    grid: tuple[int, int] | None = None

    @property
    def tasks(self) -> int:
        """How many threads could have something to do."""
        return self.grid[0] * self.grid[1] if self.grid else len(self.pieces)

    def parallel(self, threads: int) -> float:
        """How many threads' worth of work is done at a time: the whole over what the busiest thread does."""
        if self.grid:
            panels, bands = self.grid
            return panels * bands / _busiest(panels, bands, threads)
        longest, total = max(self.pieces), sum(self.pieces)
        if longest * len(self.pieces) == total:  # equal pieces
            return len(self.pieces) / -(-len(self.pieces) // threads)
        return total / max(longest, total / threads)


def role_of(program: Program, instr: Instr) -> str:
    """A name for what an instruction does: its operation's, and for products that of its weight."""
    if instr.op != "linear":
        return instr.op
    if instr in program.tail:
        return "head"
    name = program.weights[instr.weights[0]].name
    return next((role for part, role in ROLES.items() if part in name), "linear")


def work_of(program: Program, instr: Instr, load: Load) -> Work:
    """What an instruction does in a step of this load, with one logit row a sequence."""
    slots = [program.slots[at] for at in (*instr.inputs, *instr.outputs) if at >= 0]
    counts = {"T": load.rows, "R": load.sequences, "E": load.rows * program.limits.experts_per_token}
    rows = counts[slots[-1].rows] if slots else load.rows
    touched = float(sum(ITEM_BYTES[slot.dtype] * slot.cols * min(rows, counts[slot.rows]) for slot in slots))
    if instr.op == "linear":
        return _product(program, instr, rows, touched)
    if instr.op in ("expert_linear", "expert_sum"):
        return _experts(program, instr, load.rows, touched)
    if instr.op == "attention":
        return _attention(program, instr, load, touched)
    return Work(0.0, touched, 0.0, (1.0,) * rows)


def _product(program: Program, instr: Instr, rows: int, touched: float) -> Work:
    weight = program.weights[instr.weights[0]]
    operations = 2.0 * weight_elements(weight) * rows
    x = program.slots[instr.inputs[0]]
    if x.dtype == "i8":
        planes = x.cols // weight.k_padded
        operations *= planes / 2
    return Work(float(weight_bytes(weight)), touched, operations, grid=(weight.n // CELL, -(-rows // CELL)))


def _experts(program: Program, instr: Instr, rows: int, touched: float) -> Work:
    """Of the experts those that are to be expected where tokens choose at random."""
    weight, experts, chosen = program.weights[instr.weights[0]], instr.ints[0], program.limits.experts_per_token
    met = experts * (1 - (1 - chosen / experts) ** rows)
    operations = 2.0 * weight_elements(weight) / experts * chosen * rows
    panels = round(weight.n / CELL / experts * met)
    return Work(weight_bytes(weight) / experts * met, touched, operations, grid=(panels, 1))


def _attention(program: Program, instr: Instr, load: Load, touched: float) -> Work:
    _, heads, kv_heads, size, window = instr.ints
    base = load.context - load.tokens
    seen = sum(min(base + t + 1, window or load.context) for t in range(load.tokens))
    cached = min(load.context, window + load.tokens) if window else load.context
    padded = -(-size // CELL) * CELL
    streamed = load.sequences * kv_heads * cached * kv_token_bytes(program.kv.dtype, padded)
    pieces = load.sequences * kv_heads * _tiles(load, heads // kv_heads, window)
    return Work(float(streamed), touched, 4.0 * heads * size * seen * load.sequences, tuple(pieces))


def _tiles(load: Load, group: int, window: int) -> list[float]:
    """Costs of the tasks of one sequence and KV head, as if there were too few to leave them whole."""
    rows, base, costs = load.tokens * group, load.context - load.tokens, []
    for row in range(0, rows, TILE_ROWS):
        high = min(row + TILE_ROWS, rows)
        begin = max(0, base + row // group - window + 1) // SPLIT if window else 0
        end = base + (high - 1) // group + 1
        for split in range(begin, -(-end // SPLIT)):
            positions = min((split + 1) * SPLIT, end) - split * SPLIT
            costs.append(-(-(high - row) // 16) * 16 * positions + float(TASK_COST))
    return costs


def _busiest(panels: int, bands: int, threads: int) -> int:
    """Cells of the busiest thread in the grid that the runtime picks."""
    return min(-(-panels // (threads // along)) * -(-bands // along) for along in range(1, min(bands, threads) + 1))
