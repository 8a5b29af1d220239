"""What a device refuses, and that it says why: programs at creation, weights when written, steps when submitted.

A program that was created never looks at shapes again, so everything that could lead astray is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from one_op import Bench, Maker, Span, fill_step

from dashinfer_lite.devices import open_device
from dashinfer_lite.devices.step import Step
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.ops import OPS
from dashinfer_lite.graph.program import Instr, KvSpec, Limits, Program

Change = Callable[[Program], Program]


@pytest.fixture
def cpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One device is enough: checks are the same on all tiers. Another one's reasons have words of their own."""
    opened = open_device(request.config.getoption("device", None) or "cpu", threads=2)
    yield opened
    opened.close()


def everything(info: Any) -> Maker:
    """A program with every operation, each used as it should be."""
    m = Maker(info, tokens=64, tail_rows=32, seqs=4, vocab=64, hidden=64, kv=KvSpec(2, 2, 32, "bf16", 32, 4))
    x, h, q, k, v, table = m.slot(64), m.slot(64, "bf16"), m.slot(128), m.slot(64), m.slot(64), m.slot(32)
    a, g, rows, logits = m.slot(128, "bf16"), m.slot(64, "bf16"), m.slot(64, "bf16", "R"), m.slot(64, rows="R")
    m.view(q, 32, 64)
    words, frequencies, norm, bias = m.matrix(64, 64, "bf16", kind="table"), m.vector(16), m.vector(64), m.vector(64)
    wide, head, out = m.matrix(128, 64, "bf16"), m.vector(32), m.matrix(64, 128, "bf16", group=32)
    gate_up, lm_head, slopes = m.matrix(128, 64, "bf16"), m.matrix(64, 64, "bf16"), m.vector(4)
    m.op("embed", (), (x,), (words,), scale=1)
    m.op("rope_table", (), (table,), (frequencies, -1), h=16, attention=1)
    m.op("rms_norm", (x,), (h,), (norm,), cols=64, eps=1e-5)
    m.op("layer_norm", (x,), (h,), (norm, bias), cols=64, eps=1e-5)
    m.op("linear", (h,), (q,), (wide,))
    m.op("head_norm", (q,), (q,), (head,), heads=4, D=32, eps=1e-5)
    m.op("rope", (q, table), (q,), heads=4, D=32, rotary=32)
    m.op("kv_write", (k, v), layer=1, Hkv=2, D=32)
    m.op("rope_kv", (q, k, v, table), (q,), (head, head), layer=0, Hq=4, Hkv=2, D=32, rotary=32, eps=1e-5)
    m.op("attention", (q,), (a,), (slopes, slopes), layer=0, Hq=4, Hkv=2, D=32, window=7, scale=0.2)
    m.op("linear", (a, x), (x,), (out, bias))
    m.op("linear", (h,), (g,), (gate_up,), act=17)
    m.op("act", (x,), (x,), act=1)
    m.op("mul", (x, x), (x,))
    m.op("add", (x, g), (x,))
    m.op("scale", (x,), (x,), factor=2)
    m.op("softcap", (x,), (x,), cap=30)
    m.op("cast", (x,), (h,))
    m.tail_op("gather_rows", (h,), (rows,))
    m.tail_op("linear", (rows,), (logits,), (lm_head,))
    m.tail_op("sample", (logits,), V=64)
    return m


X, H, Q, K, V, TABLE, A, G, ROWS, LOGITS, VIEW = range(11)
WORDS, FREQUENCIES, NORM, BIAS, WIDE, HEAD, OUT, GATE_UP, LM_HEAD, SLOPES = range(10)


def test_every_operation_is_there(cpu: Any) -> None:
    """The program of this file is a good one."""
    program = everything(cpu.info).program()
    assert {instr.op for instr in (*program.body, *program.tail)} == set(OPS)
    cpu.create(program).close()


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

        return replace(program, body=changed(program.body), tail=changed(program.tail) if OPS[op].name != "linear" else program.tail)

    return apply


def slot(at: int, **changes: Any) -> Change:
    return lambda program: replace(program, slots=tuple(replace(s, **changes) if i == at else s for i, s in enumerate(program.slots)))


def weight(at: int, **changes: Any) -> Change:
    return lambda program: replace(program, weights=tuple(replace(w, **changes) if i == at else w for i, w in enumerate(program.weights)))


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
    "odd weight rows": (weight(WIDE, n=100), rf"weight {WIDE}: bad shape \[100, 64\]"),
    "no weight columns": (weight(WIDE, k=0), f"weight {WIDE}: bad shape"),
    "16-bit vector": (weight(NORM, dtype="bf16"), f"weight {NORM}: vectors are fp32"),
    "broken groups": (weight(OUT, k_group=48), f"weight {OUT}: 128 columns are no whole number of groups of 48"),
    "groups that shrink": (weight(OUT, k_group_padded=16), f"weight {OUT}: 128 columns"),
    "unpadded groups": (weight(WIDE, k_group_padded=65), f"weight {WIDE}: 65 padded columns"),
    "no kv heads": (kv(heads=0), "kv cache"),
    "large kv heads": (kv(head_size=257), "kv cache"),
    "odd kv blocks": (kv(block_tokens=33), "kv cache"),
    "no kv blocks": (kv(blocks=0), "kv cache"),
    "fp16 kv": (kv(dtype="f16"), "kv cache"),
    "embed: not a row": (instr("embed", outputs=(Q,)), "no fp32 row of the table"),
    "embed: into bf16": (instr("embed", outputs=(H,)), "no fp32 row of the table"),
    "embed: from a vector": (instr("embed", weights=(NORM,)), f"weight {NORM} is of the wrong kind"),
    "rope table: unknown kind": (instr("rope_table", kind=3), "rope kind 3"),
    "rope table: many frequencies": (instr("rope_table", h=129), "129 frequencies"),
    "rope table: no frequencies": (instr("rope_table", h=0), "table of 2 x 0"),
    "rope table: narrow": (instr("rope_table", h=17), "32 columns for a table of 2 x 17"),
    "rope table: no context": (instr("rope_table", kind=1, original=0), "original context of 0"),
    "rope table: no long frequencies": (instr("rope_table", kind=2, original=9), "weight -1 does not exist"),
    "rope table: bf16": (instr("rope_table", outputs=(H,)), "columns for a table"),
    "norm: bf16 input": (instr("rms_norm", inputs=(H,), outputs=(X,)), "norms read fp32"),
    "norm: other columns": (instr("rms_norm", outputs=(A,)), "norms read fp32 and keep the columns"),
    "norm: columns": (instr("rms_norm", cols=65), "65 columns count of 64"),
    "norm: short weight": (instr("rms_norm", weights=(HEAD,)), f"weight {HEAD} is no vector of 64"),
    "norm: no weight": (instr("layer_norm", weights=(-1, BIAS)), "weight -1 does not exist"),
    "norm: short bias": (instr("layer_norm", weights=(NORM, HEAD)), f"weight {HEAD} is no vector of 64"),
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
    "act: unknown": (instr("act", act=9), "activation 9 is unknown"),
    "mul: columns": (instr("mul", inputs=(X, Q)), "columns differ"),
    "add: columns": (instr("add", inputs=(Q, X)), "columns differ"),
    "scale: columns": (instr("scale", outputs=(Q,)), "columns differ"),
    "softcap: rows": (instr("softcap", outputs=(LOGITS,)), "has the rows of the tail"),
    "cast: columns": (instr("cast", outputs=(A,)), "columns differ"),
    "gather: type": (instr("gather_rows", inputs=(X,)), "columns or types differ"),
    "gather: rows": (instr("gather_rows", inputs=(ROWS,)), "gathers token rows into logit rows"),
    "sample: vocabulary": (instr("sample", V=65), "65 tokens in 64 fp32 logit columns"),
    "sample: bf16": (instr("sample", inputs=(ROWS,)), "fp32 logit columns"),
    "sample: body rows": (instr("sample", inputs=(X,)), "has the rows of the body"),
    "attention in the tail": (moved("attention", True), "stands in the tail"),
    "embed in the tail": (moved("embed", True), "stands in the tail"),
    "kv write in the tail": (moved("kv_write", True), "stands in the tail"),
    "gather in the body": (moved("gather_rows", False), "stands in the body"),
    "sample in the body": (moved("sample", False), "stands in the body"),
    "two draws": (moved("sample", True), "more than one instruction samples"),
    "rope table of logit rows": (lambda p: instr("rope", inputs=(Q, LOGITS))(p), "has the rows of the tail"),
    "norm of body rows in the tail": (moved("rms_norm", True), "has the rows of the body"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_programs(cpu: Any, case: str) -> None:
    change, reason = REFUSED[case]
    with pytest.raises(DeviceError, match=reason if cpu.info.name == "cpu" else None):
        cpu.create(change(everything(cpu.info).program())).close()


def test_operations_of_other_versions(cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code that the device does not know."""
    monkeypatch.setitem(OPS, "act", replace(OPS["act"], code=99))
    with pytest.raises(DeviceError, match="code 99: unknown to this device"):
        cpu.create(everything(cpu.info).program())


def test_memory_that_nobody_has(cpu: Any) -> None:
    """Sizes beyond the address space are a reason like any other."""
    program = everything(cpu.info).program()
    for change in (kv(blocks=2**31 - 1, block_tokens=2**20), lambda p: replace(p, arena_bytes=1 << 60), weight(WIDE, n=2**31 - 32, k=2**24)):
        with pytest.raises(DeviceError):
            cpu.create(change(program))


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights(cpu: Any) -> None:
    """Rows that a weight lacks, columns that it has not, vectors of another length."""
    executable = cpu.create(everything(cpu.info).program())
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


# ---- steps -----------------------------------------------------------------------------------------------------------


def set_in(name: str, at: Any, value: Any) -> Callable[[Any], None]:
    def change(step: Any) -> None:
        getattr(step, name)[at] = value

    return change


def set_count(**counts: Any) -> Callable[[Any], None]:
    def change(step: Any) -> None:
        for name, value in counts.items():
            setattr(step, name, value)

    return change


def several(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    def change(step: Any) -> None:
        for one in changes:
            one(step)

    return change


STEPS: dict[str, tuple[Callable[[Any], None], str]] = {
    "no tokens": (set_count(T=0), "0 tokens"),
    "negative tokens": (set_count(T=-1), "-1 tokens"),
    "too many tokens": (set_count(T=65), "exceed its arrays"),
    "no sequences": (set_count(B=0), "0 sequences"),
    "too many sequences": (set_count(B=5), "exceed its arrays"),
    "negative logit rows": (set_count(R=-1), "-1 logit rows"),
    "too many logit rows": (set_count(R=10_000), "exceed its arrays"),
    "no position rows": (set_count(position_rows=0), "0 position rows"),
    "four position rows": (set_count(position_rows=4), "4 position rows"),
    "a gap before the sequences": (set_in("q_offset", 0, 1), "do not cover"),
    "a gap after the sequences": (set_in("q_offset", 2, 8), "do not cover"),
    "an empty sequence": (set_in("q_offset", 1, 0), "sequence 0 has 0 new"),
    "a sequence beyond its cache": (set_in("q_offset", 1, 12), "sequence 0 has 12 new of 5"),
    "a sequence that ends before it begins": (several(set_in("q_offset", 1, 12), set_in("kv_len", 0, 12)), "sequence 1 has -3 new"),
    "fewer cached than new": (set_in("kv_len", 0, 4), "sequence 0 has 5 new of 4"),
    "more blocks than the table": (set_in("kv_len", 1, 9 * 32), "needs 9 blocks of 8"),
    "a cache without end": (set_in("kv_len", 1, 2**31 - 1), "blocks of 8"),
    "a block too far": (set_in("block_table", (1, 0), 4), "block 4 does not exist"),
    "a block below": (set_in("block_table", (0, 0), -1), "block -1 does not exist"),
    "an older block": (several(set_in("kv_len", 1, 40), set_in("block_table", (1, 1), 9)), "block 9 does not exist"),
    "a slot too far": (set_in("tokens", 2, -9), "token 2 takes a sequence slot"),
    "the lowest token": (set_in("tokens", 0, -(2**31)), "token 0 takes a sequence slot"),
    "a logit row too far": (set_in("logit_row", 0, 9), "logit row 0"),
    "a logit row below": (set_in("logit_row", 1, -1), "logit row 1"),
    "a drawing slot too far": (set_in("sample", 1, None), "logit row 1"),
    "a cleared block too far": (several(set_count(n_clear=1), set_in("clear_blocks", 0, 4)), "cleared block"),
    "a cleared block below": (several(set_count(n_clear=1), set_in("clear_blocks", 0, -1)), "cleared block"),
    "too many cleared blocks": (set_count(n_clear=10_000), "exceed its arrays"),
    "external rows that descend": (several(set_count(n_external=2), set_in("external_row", slice(0, 2), [3, 1])), "ascend"),
    "an external row too far": (several(set_count(n_external=1), set_in("external_row", 0, 9)), "external rows"),
    "too many external rows": (set_count(n_external=10_000), "external states"),
    "no external states": (set_count(n_external=1, external=None), "external states"),
    "narrow external states": (set_count(n_external=1, external=np.zeros((2, 63), np.float32)), "external states"),
    "wide external numbers": (set_count(n_external=1, external=np.zeros((2, 64))), "external states"),
    "few external states": (set_count(n_external=3), "external states"),
    "logits of another vocabulary": (set_count(out_logits=np.zeros((64, 63), np.float32)), "63 logit columns"),
    "alternatives of another program": (set_count(out_top_ids=np.zeros((64, 3), np.int32)), "3 alternatives"),
}


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_steps(cpu: Any, case: str) -> None:
    """An impossible step is refused as a whole, and the program goes on as if it had not been asked."""
    change, reason = STEPS[case]
    bench = Bench(cpu, everything(cpu.info))
    for at, spec in enumerate(bench.program.weights):
        values = np.ones((spec.n, spec.k), np.float32) / 64
        bench.vector(at, values[:, 0]) if spec.kind == "vector" else bench.matrix(at, values)

    def good() -> Any:
        spans = [Span(5, 0, [1, 2, 3, 4, 5], (2,), logits=(4,)), Span(4, 0, [6, 7, 8, 9], (1,), logits=(3,), slot=3)]
        step = fill_step(bench.step, spans, (1, 2))
        step.external = np.zeros((2, 64), np.float32)
        return step

    before = bench.submit(good()).out_logits[:2].copy()
    assert np.isfinite(before).all()
    kept = {name: getattr(bench.step, name) for name in ("out_logits", "out_top_ids")}
    step = good()
    if case == "a drawing slot too far":
        step.sample["slot"][1] = 8
    else:
        change(step)
    with pytest.raises(DeviceError, match=reason if cpu.info.name == "cpu" else None):
        cpu_submit(bench, step)
    for name, array in kept.items():
        setattr(step, name, array)
    np.testing.assert_array_equal(bench.submit(good()).out_logits[:2], before)
    bench.close()


def cpu_submit(bench: Bench, step: Any) -> None:
    """Submits and waits: a device with steps in flight may say no at either."""
    bench.executable.wait(bench.executable.submit(step))


def test_steps_made_for_a_larger_program(cpu: Any) -> None:
    """Arrays with room for more do not make a program take more."""
    bench = Bench(cpu, everything(cpu.info))
    step = Step(Limits(128, 32, 8, bench.program.limits.max_logprobs), 8, vocab_size=64)
    with pytest.raises(DeviceError):
        bench.submit(fill_step(step, [Span(65, blocks=(0, 1, 2))]))
    with pytest.raises(DeviceError):
        bench.submit(fill_step(step, [Span(1, blocks=(0,))] * 5))
    bench.submit(fill_step(step, [Span(64, blocks=(0, 1), logits=range(64))]))
    bench.close()


def test_programs_without_a_cache(cpu: Any) -> None:
    """There are no blocks to clear."""
    maker = Maker(cpu.info)
    x = maker.slot(32)
    maker.op("scale", (x,), (x,), factor=2)
    bench = Bench(cpu, maker)
    with pytest.raises(DeviceError, match="cleared block"):
        bench.run(Span(3), clear=(0,))
    bench.put(x, np.ones((3, 32)))
    bench.run(Span(3))
    assert (bench.get(x, 3) == 2).all()
    bench.close()


def test_blocks_that_are_not_there(cpu: Any) -> None:
    """kv_read and kv_write know their blocks and their size."""
    executable = cpu.create(everything(cpu.info).program())
    (data,) = executable.kv_read([3])
    for blocks in ([4], [-1], [0, 77]):
        with pytest.raises(DeviceError):
            executable.kv_read(blocks)
        with pytest.raises(DeviceError):
            executable.kv_write(blocks, [data] * len(blocks))
    with pytest.raises(DeviceError):
        executable.kv_write([0], [data[:-1]])
    with pytest.raises(DeviceError):
        executable.kv_write([0, 1], [data])
    executable.close()


def test_activations_that_are_not_there(cpu: Any) -> None:
    """Test access refuses slots and rows that the program lacks."""
    bench = Bench(cpu, everything(cpu.info))
    with pytest.raises(DeviceError):
        bench.executable.slot_read(X, 65)
    with pytest.raises(DeviceError):
        bench.executable.slot_write(X, 65, np.zeros((65, 64), np.float32))
    bench.close()


# ---- the life of devices and programs --------------------------------------------------------------------------------


def test_two_programs_on_one_device(cpu: Any) -> None:
    """Each has its own weights, caches, activations and slots; steps may alternate."""
    rng = np.random.default_rng(0)
    benches, expected = [], []
    for _ in range(2):
        maker = Maker(cpu.info)
        x, y = maker.slot(64), maker.slot(32)
        maker.op("linear", (x,), (y,), (maker.matrix(32, 64),))
        bench = Bench(cpu, maker)
        w = rng.standard_normal((32, 64)).astype(np.float32)
        bench.matrix(0, w)
        values = rng.standard_normal((7, 64)).astype(np.float32)
        bench.put(x, values)
        benches.append(bench)
        expected.append(values.astype(np.float64) @ w.T)
    for _ in range(3):
        for bench in benches:
            bench.run(Span(7))
    for bench, want in zip(benches, expected, strict=True):
        np.testing.assert_allclose(bench.get(1, 7), want, atol=1e-4)
    benches[0].close()
    benches[1].run(Span(7))
    benches[1].close()


def test_closed_programs_and_devices(cpu: Any) -> None:
    """Closing twice is harmless; what is closed answers with an error."""
    device = open_device("cpu", threads=2)
    bench = Bench(device, everything(device.info))
    other = Bench(device, everything(device.info))
    bench.close()
    bench.close()
    calls: list[Callable[[], object]] = [
        lambda: bench.run(Span(1, blocks=(0,))),
        lambda: bench.executable.kv_read([0]),
        lambda: bench.put(X, np.zeros((1, 64))),
        lambda: bench.vector(NORM, np.zeros(64)),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match="closed"):
            call()
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.create(everything(device.info).program())
    with pytest.raises(DeviceError, match="closed"):
        other.run(Span(1, blocks=(0,)))
    other.close()


def test_devices_that_cannot_be_opened() -> None:
    """Names, tiers and numbers of threads that make no sense."""
    for name, options, reason in (
        ("cpu:1", {}, "no number"),
        ("cpu", {"isa": "mmx"}, "unknown tier 'mmx'"),
        ("cpu", {"threads": 0}, "threads=0"),
        ("cpu", {"threads": 1025}, "threads=1025"),
        ("tpu", {}, "unknown"),
    ):
        with pytest.raises(DeviceError, match=reason):
            open_device(name, **options)  # type: ignore[arg-type]
