"""What a device refuses, and that it says why: programs at creation, weights when they are written.

A program that was created never looks at shapes again, so everything that could lead astray is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from every_op import (
    BIAS,
    CODES,
    EXPERT_CODES,
    EXPERTS_DOWN,
    EXPERTS_UP,
    GRID,
    HEAD,
    INNER,
    INNER_GRID,
    INNER_PLANES,
    LOGITS,
    NORM,
    ORDER,
    OUT,
    PLANES,
    ROUTING,
    ROWS,
    SCORES,
    TABLE,
    VIEW,
    WIDE,
    WORDS,
    A,
    G,
    H,
    K,
    Q,
    V,
    X,
    everything,
)

from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.ops import OPS
from dashinfer_lite.graph.program import Instr, Program

Change = Callable[[Program], Program]


def test_every_operation_is_there(default_device: Any) -> None:
    """The program of this file is a good one."""
    program = everything(default_device.info).program()
    assert {instr.op for instr in (*program.body, *program.tail)} == set(OPS)
    default_device.create(program).close()


# ---- changes to that program -----------------------------------------------------------------------------------------


def instr(op: str, nth: int = 0, **changes: Any) -> Change:
    """Changes the nth instruction of a kind: operands by `inputs`, `outputs`, `weights`; attributes by name."""

    def change(one: Instr) -> Instr:
        known, ints, floats = OPS[op], list(one.ints), list(one.floats)
        fields = {name: changes[name] for name in ("inputs", "outputs", "weights") if name in changes}
        for name in set(changes) - set(fields):
            ints[known.ints.index(name)] = changes[name]
        return replace(one, ints=tuple(ints), floats=tuple(floats), **fields)

    def apply(program: Program) -> Program:
        def changed(instrs: tuple[Instr, ...]) -> tuple[Instr, ...]:
            at = [i for i, one in enumerate(instrs) if one.op == op]
            return tuple(change(one) if i in at[nth : nth + 1] else one for i, one in enumerate(instrs))

        return replace(
            program,
            body=changed(program.body),
            tail=changed(program.tail) if OPS[op].name != "linear" else program.tail,
        )

    return apply


def slot(at: int, **changes: Any) -> Change:
    return lambda program: replace(
        program, slots=tuple(replace(s, **changes) if i == at else s for i, s in enumerate(program.slots))
    )


def weight(at: int, **changes: Any) -> Change:
    return lambda program: replace(
        program, weights=tuple(replace(w, **changes) if i == at else w for i, w in enumerate(program.weights))
    )


def kv(**changes: Any) -> Change:
    return lambda program: replace(program, kv=replace(program.kv, **changes))


def limits(**changes: Any) -> Change:
    return lambda program: replace(program, limits=replace(program.limits, **changes))


def moved(op: str, to_tail: bool) -> Change:
    """The instruction stands at the other end of the program."""

    def apply(program: Program) -> Program:
        mine = tuple(one for one in (*program.body, *program.tail) if one.op == op)[:1]
        if to_tail:
            return replace(program, tail=(*program.tail, *mine))
        return replace(program, body=(*program.body, *mine))

    return apply


REFUSED: dict[str, tuple[Change, str]] = {
    "no instructions": (lambda p: replace(p, body=()), "bad counts"),
    "no slots": (lambda p: replace(p, slots=()), "bad counts"),
    "no tokens": (limits(max_tokens=0), "bad limits"),
    "too many tokens": (limits(max_tokens=2**30), "bad limits"),
    "no tail rows": (limits(tail_rows=0), "bad limits"),
    "no sequences": (limits(max_seqs=0), "bad limits"),
    "negative logprobs": (limits(max_logprobs=-1), "bad limits"),
    "fp16 activation": (slot(G, dtype="f16"), f"slot {G}: activations are fp32 or bf16"),
    "odd columns": (slot(X, cols=63), f"slot {X}: columns 63"),
    "no columns": (slot(X, cols=0), f"slot {X}: columns 0"),
    "odd first column": (slot(VIEW, first_col=5), f"slot {VIEW}: columns 64 at 5"),
    "negative first column": (slot(VIEW, first_col=-32), f"slot {VIEW}: columns"),
    "no such parent": (slot(VIEW, parent=99), f"slot {VIEW}: its parent 99"),
    "view of a view": (slot(VIEW, parent=VIEW), f"slot {VIEW}: its parent {VIEW}"),
    "view beyond its parent": (slot(VIEW, first_col=96), f"slot {VIEW}: does not fit its parent"),
    "view of another type": (slot(VIEW, dtype="bf16"), f"slot {VIEW}: does not fit its parent"),
    "slot beyond the arena": (slot(X, offset=1 << 40), f"slot {X}: lies outside the arena"),
    "slot before the arena": (slot(X, offset=-64), f"slot {X}: lies outside the arena"),
    "unaligned slot": (slot(X, offset=4), f"slot {X}: lies outside the arena"),
    "small arena": (lambda p: replace(p, arena_bytes=64), "lies outside the arena"),
    "odd weight rows": (weight(WIDE, n=100), rf"weight {WIDE} \[100, 64\]: bad shape"),
    "no weight columns": (weight(WIDE, k=0), rf"weight {WIDE} \[128, 0\]: bad shape"),
    "16-bit vector": (weight(NORM, dtype="bf16"), rf"weight {NORM} .*: vectors are fp32"),
    "broken groups": (weight(OUT, k_group=48), f"weight {OUT} .*: its columns are no whole number of groups"),
    "groups that shrink": (
        weight(OUT, k_group_padded=16),
        f"weight {OUT} .*: its columns are no whole number of groups",
    ),
    "unpadded groups": (weight(WIDE, k_group_padded=65), f"weight {WIDE} .*: its padded columns are no multiple of 32"),
    "quantized table": (weight(WORDS, dtype="u8", quant_group=64), f"weight {WORDS} .*: its type is not"),
    "quantized without groups": (
        weight(CODES, quant_group=0),
        f"weight {CODES} .*: its quantization groups do not fit",
    ),
    "quantized groups beyond its columns": (
        weight(CODES, quant_group=256, k_group=256),
        f"weight {CODES} .*: its quant",
    ),
    "quantized groups of another padding": (weight(CODES, k_group_padded=48), f"weight {CODES} .*: its quantization"),
    "quantized groups beyond int32": (
        weight(CODES, k=65537, k_group=65537, k_group_padded=65600, quant_group=65537),
        f"weight {CODES} .*: more than 65536 columns share a scale",
    ),
    "scales of integers": (weight(CODES, scale_dtype="i8"), f"weight {CODES} .*: scales are fp32, fp16 or bf16"),
    "view of planes": (slot(VIEW, parent=PLANES, dtype="i8", cols=64), f"slot {VIEW}: does not fit its parent"),
    "no kv heads": (kv(heads=0), "kv cache"),
    "large kv heads": (kv(head_size=257), "kv cache"),
    "odd kv blocks": (kv(block_tokens=33), "kv cache"),
    "no kv blocks": (kv(blocks=0), "kv cache"),
    "fp16 kv": (kv(dtype="f16"), "kv cache"),
    "signed kv": (kv(dtype="i8"), "kv cache"),
    "embed: not a row": (instr("embed", outputs=(Q,)), "no fp32 row of the table"),
    "embed: into bf16": (instr("embed", outputs=(H,)), "no fp32 row of the table"),
    "embed: from a vector": (instr("embed", weights=(NORM,)), f"weight {NORM} is of the wrong kind"),
    "rope table: unknown kind": (instr("rope_table", kind=4), "rope kind 4"),
    "rope table: many frequencies": (instr("rope_table", h=129), "129 frequencies"),
    "rope table: no frequencies": (instr("rope_table", h=0), "table of 2 x 0"),
    "rope table: narrow": (instr("rope_table", h=17), "32 columns for a table of 2 x 17"),
    "rope table: no context": (instr("rope_table", kind=1, original=0), "original context of 0"),
    "rope table: one frequency": (instr("rope_table", kind=3, original=9, h=1), "NTK scaling of one frequency"),
    "rope table: logn": (instr("rope_table", logn=1), "logn from 1 tokens on"),
    "rope table: no long frequencies": (instr("rope_table", kind=2, original=9), "weight -1 does not exist"),
    "rope table: bf16": (instr("rope_table", outputs=(H,)), "columns for a table"),
    "norm: bf16 input": (instr("rms_norm", inputs=(H,), outputs=(X,)), "norms read fp32"),
    "norm: other columns": (instr("rms_norm", outputs=(A,)), "norms read fp32 and keep the columns"),
    "norm: columns": (instr("rms_norm", cols=65), "65 columns count of 64"),
    "norm: short weight": (instr("rms_norm", weights=(HEAD,)), f"weight {HEAD} is no vector of 64"),
    "norm: no weight": (instr("layer_norm", weights=(-1, BIAS)), "weight -1 does not exist"),
    "norm: short bias": (instr("layer_norm", weights=(NORM, HEAD)), f"weight {HEAD} is no vector of 64"),
    "quantize: no columns": (instr("quantize", K=0), "0 columns in groups of 48"),
    "quantize: more columns than there are": (instr("quantize", K=129, group=43), "128 columns hold no 129"),
    "quantize: groups": (instr("quantize", group=0), "128 columns in groups of 0"),
    "quantize: planes": (instr("quantize", planes=3), "3 planes"),
    "quantize: fewer planes than bytes": (instr("quantize", planes=1), "384 bytes a row for 3 groups"),
    "quantize: heads": (instr("quantize", head=24, padded_head=32), "128 columns hold no 128, in heads of 24"),
    "quantize: into fp32": (instr("quantize", outputs=(Q, GRID)), "128 bytes a row for 3 groups"),
    "quantize: no grid": (instr("quantize", outputs=(PLANES,)), "slot -1 does not exist"),
    "quantize: grid of bytes": (instr("quantize", outputs=(PLANES, PLANES)), "no room for the scales and sums"),
    "quantize: order of heads": (instr("quantize", head=32, padded_head=32, weights=(ORDER,)), "with their padding"),
    "quantize: short order": (instr("quantize", weights=(NORM,)), f"weight {NORM} is no vector of 128"),
    "linear: planes of another width": (instr("linear", 2, inputs=(Q, X, GRID)), "no one or two planes of 192"),
    "linear: no grid": (instr("linear", 2, inputs=(PLANES, X)), "slot -1 does not exist"),
    "linear: planes for numbers": (instr("linear", 1, inputs=(PLANES, X)), "384 input columns meet 128"),
    "linear: into planes": (instr("linear", 2, outputs=(PLANES,)), "384 output columns for 64"),
    "linear: no input": (instr("linear", inputs=(-1,)), "slot -1 does not exist"),
    "linear: no such slot": (instr("linear", outputs=(77,)), "slot 77 does not exist"),
    "linear: no such weight": (instr("linear", weights=(77,)), "weight 77 does not exist"),
    "linear: table": (instr("linear", weights=(WORDS,)), f"weight {WORDS} is of the wrong kind"),
    "linear: inner columns": (instr("linear", inputs=(A,)), "128 input columns meet 64"),
    "linear: outer columns": (instr("linear", outputs=(X,)), "64 output columns for 128"),
    "linear: gated columns": (instr("linear", act=17), "128 output columns for 64"),
    "linear: activation": (instr("linear", act=4), "activation 4 is unknown"),
    "linear: gated activation": (instr("linear", act=20), "activation 20 is unknown"),
    "linear: fp32 input": (instr("linear", inputs=(X,)), "bf16 weights take bf16 activations"),
    "linear: short bias": (instr("linear", weights=(WIDE, BIAS)), f"weight {BIAS} is no vector of 128"),
    "linear: residual columns": (instr("linear", 1, inputs=(A, Q)), "the residual is no fp32 value of 64 columns"),
    "linear: bf16 residual": (instr("linear", 1, inputs=(A, H)), "the residual is no fp32 value"),
    "head norm: heads": (instr("head_norm", heads=3), "128 columns are not 3 padded heads"),
    "head norm: odd size": (instr("head_norm", D=31), "head sizes are even"),
    "head norm: large": (instr("head_norm", heads=1, D=258), "head sizes are even"),
    "head norm: weight": (instr("head_norm", weights=(-1,)), "weight -1 does not exist"),
    "rope: heads": (instr("rope", heads=2), "128 columns are not 2 padded heads"),
    "rope: rotary": (instr("rope", rotary=34), "34 rotary columns of 32"),
    "rope: odd rotary": (instr("rope", rotary=7), "7 rotary columns"),
    "rope: style": (instr("rope", style=2), "rope style 2"),
    "rope: bf16 table": (instr("rope", inputs=(Q, H)), "the rope table has"),
    "kv write: layer": (instr("kv_write", layer=2), "layer 2 with 2 heads of 32 does not fit"),
    "kv write: heads": (instr("kv_write", inputs=(Q, Q), Hkv=4), "does not fit the KV cache"),
    "kv write: v": (instr("kv_write", inputs=(K, Q)), "128 columns are not 2 padded heads"),
    "rope kv: k": (instr("rope_kv", inputs=(Q, Q, V, TABLE)), "128 columns are not 2 padded heads"),
    "rope kv: norm": (instr("rope_kv", weights=(WIDE, -1)), f"weight {WIDE} is no vector of 32"),
    "rope kv: layer": (instr("rope_kv", layer=-1), "layer -1"),
    "attention: output": (instr("attention", outputs=(G,)), "64 output columns for 128"),
    "attention: groups": (instr("attention", Hkv=3), "4 query heads on 3 key heads"),
    "attention: no key heads": (instr("attention", Hkv=0), "4 query heads on 0 key heads"),
    "attention: window": (instr("attention", window=-1), "window -1"),
    "attention: cache": (instr("attention", Hkv=1), "does not fit the KV cache"),
    "attention: slopes": (instr("attention", weights=(WIDE, -1)), f"weight {WIDE} is no vector of 4"),
    "negative experts a token": (limits(experts_per_token=-1), "bad limits"),
    "too many experts a token": (limits(experts_per_token=1025), "bad limits"),
    "too many rows of experts": (limits(experts_per_token=1000, max_tokens=1 << 20), "bad limits"),
    "rows of experts without experts": (limits(experts_per_token=0), f"slot {INNER}: rows of kind 2"),
    "route: other experts a token": (instr("route", chosen=3), "3 of 5 experts .* in a program with 2 a token"),
    "route: fewer experts than a token takes": (instr("route", experts=1), "2 of 1 experts"),
    "route: more experts than there can be": (instr("route", experts=1025), "2 of 1025 experts"),
    "route: more experts than logits": (instr("route", experts=33), "no fp32 logits of 33 experts"),
    "route: bf16 logits": (instr("route", inputs=(H,)), "no fp32 logits"),
    "route: into bf16": (instr("route", outputs=(G,)), "no room for 2 experts"),
    "route: rows of experts": (instr("route", inputs=(INNER,)), "has the rows of the experts"),
    "expert linear: no experts": (instr("expert_linear", experts=0), "320 rows of the weight are no 0 experts"),
    "expert linear: broken experts": (instr("expert_linear", experts=3), "320 rows of the weight are no 3 experts"),
    "expert linear: half a gate": (instr("expert_linear", experts=10), "320 rows of the weight are no 10 experts"),
    "expert linear: activation": (instr("expert_linear", act=4), "activation 4 is unknown"),
    "expert linear: columns": (instr("expert_linear", act=1), "32 output columns for 64 of an expert"),
    "expert linear: token rows": (instr("expert_linear", outputs=(K,)), "rows of tokens and of experts are mixed up"),
    "expert linear: of experts": (instr("expert_linear", inputs=(INNER, ROUTING)), "are mixed up"),
    "expert linear: no routing": (instr("expert_linear", inputs=(H, -1)), "slot -1 does not exist"),
    "expert linear: bf16 routing": (instr("expert_linear", inputs=(H, H)), "no routing to 2 experts a token"),
    "expert linear: routing of experts": (instr("expert_linear", inputs=(H, INNER)), "no routing to 2"),
    "expert linear: fp32 input": (instr("expert_linear", inputs=(X, ROUTING)), "bf16 weights take bf16 activations"),
    "expert linear: inner columns": (instr("expert_linear", inputs=(A, ROUTING)), "128 input columns meet 64"),
    "expert linear: vector": (instr("expert_linear", weights=(NORM,)), f"weight {NORM} is of the wrong kind"),
    "expert sum: token rows": (instr("expert_sum", inputs=(SCORES, ROUTING, X)), "are mixed up"),
    "expert sum: of experts": (instr("expert_sum", outputs=(INNER,)), "are mixed up"),
    "expert sum: bf16": (instr("expert_sum", outputs=(H,)), "sums of experts are fp32"),
    "expert sum: columns": (instr("expert_sum", outputs=(Q,)), "128 output columns for 64 of an expert"),
    "expert sum: residual columns": (
        instr("expert_sum", inputs=(INNER, ROUTING, Q)),
        "the residual is no fp32 value of 64 columns",
    ),
    "expert sum: residual of experts": (instr("expert_sum", inputs=(INNER, ROUTING, INNER)), "the residual is no"),
    "expert sum: no grid": (instr("expert_sum", 1, inputs=(INNER_PLANES, ROUTING, X)), "slot -1 does not exist"),
    "expert sum: another grid": (
        instr("expert_sum", 1, inputs=(INNER_PLANES, ROUTING, X, GRID)),
        "inputs and outputs have different rows",
    ),
    "expert sum: numbers for planes": (
        instr("expert_sum", 1, inputs=(INNER, ROUTING, X, INNER_GRID)),
        "32 bytes a row are no one or two planes of 64",
    ),
    "experts of another width": (weight(EXPERTS_DOWN, n=5 * 32), "64 output columns for 32 of an expert"),
    "experts of broken panels": (weight(EXPERTS_UP, n=5 * 32), "160 rows of the weight are no 5 experts"),
    "quantized experts of other groups": (weight(EXPERT_CODES, quant_group=8, k_group=8), "no one or two planes"),
    "gate rows: columns": (instr("gate_rows", inputs=(Q, SCORES)), "columns differ"),
    "gate rows: bf16 gate": (instr("gate_rows", inputs=(X, H)), "gates are fp32"),
    "gate rows: rows": (instr("gate_rows", inputs=(X, INNER)), "inputs and outputs have different rows"),
    "attention of experts": (instr("attention", inputs=(INNER,)), "has the rows of the experts"),
    "experts in the tail": (moved("expert_linear", True), "stands in the tail"),
    "sum over planes": (instr("add", inputs=(INNER_PLANES, X)), "inputs and outputs have different rows"),
    "cast of planes": (instr("cast", inputs=(PLANES,), outputs=(PLANES,)), f"slot {PLANES} holds planes of integers"),
    "act: unknown": (instr("act", act=9), "activation 9 is unknown"),
    "mul: columns": (instr("mul", inputs=(X, Q)), "columns differ"),
    "add: columns": (instr("add", inputs=(Q, X)), "columns differ"),
    "scale: columns": (instr("scale", outputs=(Q,)), "columns differ"),
    "softcap: rows": (instr("softcap", outputs=(LOGITS,)), "has the rows of the tail"),
    "cast: columns": (instr("cast", outputs=(A,)), "columns differ"),
    "gather: type": (instr("gather_rows", inputs=(X,)), "columns or types differ"),
    "gather: rows": (instr("gather_rows", inputs=(ROWS,)), "gathers token rows into logit rows"),
    "hidden: columns": (instr("hidden", H=65), "65 columns of 64 fp32 ones"),
    "hidden: bf16": (instr("hidden", inputs=(ROWS,)), "64 columns of 64 fp32 ones"),
    "sample: vocabulary": (instr("sample", V=65), "65 tokens in 64 fp32 logit columns"),
    "sample: bf16": (instr("sample", inputs=(ROWS,)), "fp32 logit columns"),
    "sample: body rows": (instr("sample", inputs=(X,)), "has the rows of the body"),
    "attention in the tail": (moved("attention", True), "stands in the tail"),
    "embed in the tail": (moved("embed", True), "stands in the tail"),
    "kv write in the tail": (moved("kv_write", True), "stands in the tail"),
    "gather in the body": (moved("gather_rows", False), "stands in the body"),
    "hidden in the body": (moved("hidden", False), "stands in the body"),
    "sample in the body": (moved("sample", False), "stands in the body"),
    "two draws": (moved("sample", True), "more than one instruction samples"),
    "rope table of logit rows": (lambda p: instr("rope", inputs=(Q, LOGITS))(p), "has the rows of the tail"),
    "norm of body rows in the tail": (moved("rms_norm", True), "has the rows of the body"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_programs(default_device: Any, case: str) -> None:
    change, reason = REFUSED[case]
    if case == "fp16 kv" and default_device.info.name == "cuda":
        pytest.skip("GPUs have it")
    with pytest.raises(DeviceError, match=reason if default_device.info.name == "cpu" else None):
        default_device.create(change(everything(default_device.info).program())).close()


def test_operations_of_other_versions(default_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code that the device does not know."""
    monkeypatch.setitem(OPS, "act", replace(OPS["act"], code=99))
    with pytest.raises(DeviceError, match="code 99: unknown to this device"):
        default_device.create(everything(default_device.info).program())


def test_memory_that_nobody_has(default_device: Any) -> None:
    """Sizes beyond the address space are a reason like any other."""
    program = everything(default_device.info).program()
    for change in (
        kv(blocks=2**31 - 1, block_tokens=2**20),
        lambda p: replace(p, arena_bytes=1 << 60),
        weight(WIDE, n=2**31 - 32, k=2**24),
    ):
        with pytest.raises(DeviceError):
            default_device.create(change(program))


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights(default_device: Any) -> None:
    """Rows that a weight lacks, columns that it has not, vectors of another length."""
    executable = default_device.create(everything(default_device.info).program())
    rows = np.arange(32, dtype=np.int32)
    part = np.zeros(32, np.int32)
    good = np.zeros((32, 64), np.float32)
    executable.write_rows(WIDE, 96, [good], "f32", part, rows)
    for row0, count in ((128, 32), (-32, 32), (7, 32), (0, 31)):
        with pytest.raises(DeviceError, match=f"weight {WIDE}: rows"):
            executable.write_rows(WIDE, row0, [good], "f32", part[:count], rows[:count])
    for bad in (np.zeros((32, 63), np.float32), np.zeros(64, np.float32), np.zeros((64, 32), np.float32).T):
        with pytest.raises(DeviceError, match="64 contiguous elements"):
            executable.write_rows(WIDE, 0, [bad], "f32", part, rows)
    with pytest.raises(DeviceError, match=f"weight {NORM}: expected 64 elements"):
        executable.write_vector(NORM, np.zeros(63, np.float32))
    executable.close()
