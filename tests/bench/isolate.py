"""Programs that do nothing but one operation of a model, over and over, with fresh weights each time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from work import role_of

if TYPE_CHECKING:
    from dashinfer_lite.devices.native import NativeExecutable
    from dashinfer_lite.graph.program import Instr, Program, WeightSpec

CACHED = ("rope_kv", "kv_write", "attention")  # ops whose first attribute is a layer of the KV cache


def isolate(program: Program, role: str, copies: int) -> Program:
    """The first instruction of that role, `copies` times, each with its own weights and layer of the KV cache.

    A product keeps the instructions that make its planes or choose its experts, once. ValueError where the
    program has no such instruction.
    """
    instr = next((one for one in (*program.body, *program.tail) if role_of(program, one) == role), None)
    if instr is None:
        raise ValueError(f"the program has no {role}")
    weights: list[WeightSpec] = []
    before = [one for one in (*program.body, *program.tail) if _prepares(one, instr)]
    code = [_renewed(program, one, weights, 0) for one in before]
    code += [_renewed(program, instr, weights, layer) for layer in range(copies)]
    kv = replace(program.kv, layers=copies if instr.op in CACHED else 0)
    if any(one is instr for one in program.body):
        return replace(program, body=tuple(code), tail=(), weights=tuple(weights), kv=kv)
    table = next(one for one in program.body if one.op == "rope_table")  # no program is without a body
    body = (_renewed(program, table, weights, 0),)
    return replace(program, body=body, tail=tuple(code), weights=tuple(weights), kv=kv)


def fill_slots(executable: NativeExecutable, program: Program, rows: int) -> None:
    """Random numbers wherever instructions may read: products of zeros are cheaper, and equal logits dearer."""
    random = np.random.Generator(np.random.Philox(7))
    for at, slot in enumerate(program.slots):
        if slot.parent < 0 and slot.dtype != "i8":
            experts = program.limits.experts_per_token
            count = {"T": rows, "R": min(rows, program.limits.tail_rows), "E": rows * experts}[slot.rows]
            executable.slot_write(at, count, random.standard_normal((count, slot.cols), np.float32))


def _prepares(instr: Instr, product: Instr) -> bool:
    """Whether it makes what nobody else may write: the planes of a product, the experts of tokens."""
    return instr.op in ("quantize", "route") and instr.op != product.op and instr.outputs[0] in product.inputs


def _renewed(program: Program, instr: Instr, weights: list[WeightSpec], layer: int) -> Instr:
    """The instruction with weights of its own, appended to `weights`; all threads meet after it."""
    ids = []
    for at in instr.weights:
        ids.append(len(weights) if at >= 0 else -1)
        if at >= 0:
            weights.append(program.weights[at])
    ints = (layer, *instr.ints[1:]) if instr.op in CACHED else instr.ints
    return replace(instr, weights=tuple(ids), ints=ints, sync=True)
