"""A program as a table that a person can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashinfer_lite.graph.ops import ACTIVATIONS, GATED, OPS
from dashinfer_lite.graph.plan import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.graph.program import Instr, Program, Slot, WeightSpec

HEADINGS: tuple[str, ...] = ("#", "op", "out", "in", "attributes", "weights")
ZERO_BYTES = 2
_ACT_NAMES = {code: name for name, code in ACTIVATIONS.items()}


def dump_program(program: Program) -> str:
    """One line an instruction: number, op, slots such as s7:f32[T,896], attributes, weights.

    A | behind the number: threads need not meet after this instruction.
    """
    rows = [HEADINGS]
    rows += [_row(program, at, instr) for at, instr in enumerate(program.body)]
    body_end = len(rows)
    rows += [_row(program, at, instr) for at, instr in enumerate(program.tail, len(program.body))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]
    lines.insert(body_end, f"-- tail: tiles of {program.limits.tail_rows} logit rows --")
    return "\n".join([*lines, *_summary(program)])


def _row(program: Program, at: int, instr: Instr) -> tuple[str, ...]:
    op = OPS[instr.op]
    values = [*zip(op.ints, instr.ints, strict=True), *zip(op.floats, instr.floats, strict=True)]
    return (
        f"{at}" if instr.sync else f"{at} |",
        instr.op,
        " ".join(_slot(program.slots, slot) for slot in instr.outputs),
        " ".join(_slot(program.slots, slot) for slot in instr.inputs if slot >= 0),
        " ".join(_attribute(name, value) for name, value in values if value),
        " ".join(_weight(program.weights[weight]) for weight in instr.weights if weight >= 0),
    )


def _attribute(name: str, value: float) -> str:
    if name != "act":
        return f"{name}={value:.6g}"
    return _ACT_NAMES[int(value) % GATED] + ("·up" if value >= GATED else "")


def _slot(slots: Sequence[Slot], at: int) -> str:
    slot = slots[at]
    first = f"+{slot.first_col}" if slot.parent >= 0 else ""
    return f"s{at if slot.parent < 0 else slot.parent}{first}:{slot.dtype}[{slot.rows},{slot.cols}]"


def _weight(weight: WeightSpec) -> str:
    if weight.kind == "vector":
        return f"{weight.name}[{weight.n}]"
    dtype = weight.dtype + (f"-g{weight.quant_group}" if weight.groups > 1 else "")
    return f"{weight.name}:{dtype}[{weight.n},{weight.k_padded}]"


def _summary(program: Program) -> list[str]:
    kv, limits = program.kv, program.limits
    return [
        f"activations {program.arena_bytes / 2**20:.1f} MiB for {limits.max_tokens} tokens a step",
        f"weights     {sum(map(_weight_bytes, program.weights)) / 2**20:.1f} MiB in {len(program.weights)}",
        f"kv cache    {kv.blocks} blocks of {kv.block_tokens} tokens: "
        f"{kv.layers} layers x {kv.heads} heads x {kv.head_size}, {kv.dtype}",
    ]


def _weight_bytes(weight: WeightSpec) -> int:
    codes = weight.k_padded // 2 if weight.dtype == "u4" else weight.k_padded * ITEM_BYTES[weight.dtype]
    return weight.n * (codes + weight.groups * (ITEM_BYTES[weight.scale_dtype] + ZERO_BYTES))
