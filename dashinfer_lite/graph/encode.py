"""A Program as the structures of `include/dashinfer_device.h`, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dashinfer_lite.graph.ops import OPS

if TYPE_CHECKING:
    from dashinfer_lite.graph.program import Program

DTYPES: Final = {"f32": 0, "f16": 1, "bf16": 2, "i8": 4, "u8": 5, "u4": 6}
ROWS: Final = {"T": 0, "R": 1, "E": 2}
WEIGHT_KINDS: Final = {"linear": 0, "table": 1, "vector": 2}
SYNC: Final = 1

MAX_IN, MAX_OUT, MAX_WEIGHT, MAX_INT, MAX_FLOAT = 6, 2, 4, 10, 4

INSTR_DTYPE: Final = np.dtype(
    [
        ("op", "<u2"),
        ("flags", "<u2"),
        ("in", "<i2", MAX_IN),
        ("out", "<i2", MAX_OUT),
        ("weight", "<i4", MAX_WEIGHT),
        ("i", "<i4", MAX_INT),
        ("f", "<f4", MAX_FLOAT),
    ],
    align=True,
)
SLOT_DTYPE: Final = np.dtype(
    [
        ("dtype", "u1"),
        ("rows", "u1"),
        ("parent", "<i2"),
        ("cols", "<i4"),
        ("first_col", "<i4"),
        ("reserved", "<i4"),
        ("offset", "<i8"),
    ],
    align=True,
)
WEIGHT_DTYPE: Final = np.dtype(
    [
        ("kind", "u1"),
        ("dtype", "u1"),
        ("reserved", "<u2"),
        ("n", "<i4"),
        ("k", "<i4"),
        ("k_group", "<i4"),
        ("k_group_padded", "<i4"),
        ("quant_group", "<i4"),
        ("scale_dtype", "u1"),
        ("reserved2", "u1", 3),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedProgram:
    """Arrays of di_slot, di_instr (body, then tail) and di_weight_desc; the other fields stand in the Program."""

    slots: np.ndarray
    instrs: np.ndarray
    weights: np.ndarray
    n_body: int
    n_tail: int


def encode(program: Program) -> EncodedProgram:
    """Returns the program's arrays for a native device."""
    slots = np.zeros(len(program.slots), SLOT_DTYPE)
    for row, slot in zip(slots, program.slots, strict=True):
        row["dtype"], row["rows"], row["parent"] = DTYPES[slot.dtype], ROWS[slot.rows], slot.parent
        row["cols"], row["first_col"], row["offset"] = slot.cols, slot.first_col, slot.offset

    instrs = np.zeros(len(program.body) + len(program.tail), INSTR_DTYPE)
    for name in ("in", "out", "weight"):
        instrs[name] = -1
    for row, instr in zip(instrs, (*program.body, *program.tail), strict=True):
        row["op"], row["flags"] = OPS[instr.op].code, SYNC * instr.sync
        row["in"][: len(instr.inputs)] = instr.inputs
        row["out"][: len(instr.outputs)] = instr.outputs
        row["weight"][: len(instr.weights)] = instr.weights
        row["i"][: len(instr.ints)] = instr.ints
        row["f"][: len(instr.floats)] = instr.floats

    weights = np.zeros(len(program.weights), WEIGHT_DTYPE)
    for row, weight in zip(weights, program.weights, strict=True):
        row["kind"], row["dtype"], row["n"] = WEIGHT_KINDS[weight.kind], DTYPES[weight.dtype], weight.n
        row["k"], row["k_group"], row["k_group_padded"] = weight.k, weight.k_group, weight.k_group_padded
        row["quant_group"], row["scale_dtype"] = weight.quant_group, DTYPES[weight.scale_dtype]
    return EncodedProgram(slots, instrs, weights, len(program.body), len(program.tail))
