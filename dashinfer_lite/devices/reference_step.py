"""One step on its way through a program: the reference device's instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dashinfer_lite.devices import reference_ops as math
from dashinfer_lite.devices.expert_reference import by_expert, experts_of, route, weighted_sum
from dashinfer_lite.devices.kv_reference import kept, operand_dtype
from dashinfer_lite.devices.quant_reference import quantize, to_planes
from dashinfer_lite.devices.rope_reference import rope_table
from dashinfer_lite.devices.sampling_reference import sample_row
from dashinfer_lite.devices.step import STATUS_OK
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.ops import GATE_GROUP, GATED, OPS, ROPE_STYLES
from dashinfer_lite.graph.rope_frequencies import RopeFrequencies, RopeKind

if TYPE_CHECKING:
    import numpy.typing as npt

    from dashinfer_lite.devices.reference import ReferenceExecutable
    from dashinfer_lite.devices.step import Step
    from dashinfer_lite.graph.program import Instr

    Floats = npt.NDArray[np.float32]


class StepRun:
    """A step and the tile of logit rows that the tail is at."""

    def __init__(self, executable: ReferenceExecutable, step: Step) -> None:
        self.executable = executable
        self.program = executable.program
        self.step = step
        tokens = step.tokens[: step.T]
        drawn = executable.last_token[np.maximum(-1 - tokens, 0)]
        self.tokens = np.clip(np.where(tokens < 0, drawn, tokens), 0, self.program.vocab_size - 1)
        self.row0 = 0
        self.rows = {"T": step.T, "R": 0, "E": step.T * self.program.limits.experts_per_token}
        self.sequences = [
            (b, slice(int(step.q_offset[b]), int(step.q_offset[b + 1])), int(step.kv_len[b])) for b in range(step.B)
        ]

    def begin_tile(self, row0: int) -> None:
        """Moves the tail to the logit rows from `row0` on."""
        self.row0 = row0
        self.rows["R"] = min(self.program.limits.tail_rows, self.step.R - row0)

    def execute(self, instr: Instr) -> None:
        """Runs one instruction."""
        _OPERATIONS[instr.op](self, _Operands(self, instr))


class _Operands:
    """An instruction's operands: inputs and output as arrays, weights or None, attributes by name."""

    def __init__(self, run: StepRun, instr: Instr) -> None:
        op, slots = OPS[instr.op], run.program.slots
        self.inputs: list[Any] = [
            run.executable.slot(slot, run.rows[slots[slot].rows]) if slot >= 0 else None for slot in instr.inputs
        ]
        self.out_slot = slots[instr.outputs[0]] if instr.outputs else None
        self.target = run.executable.slot(instr.outputs[0], run.rows[self.out_slot.rows]) if self.out_slot else None
        self.second = run.executable.slot(instr.outputs[1], len(self.inputs[0])) if len(instr.outputs) > 1 else None
        self.quantized = run.executable.quantized.get(instr.weights[0]) if instr.weights else None
        weights = [run.executable.weights[at] if at >= 0 else None for at in instr.weights]
        self.weights = weights + [None] * (len(op.weights) - len(weights))
        self.ints: dict[str, int] = dict(zip(op.ints, instr.ints, strict=True))
        self.floats: dict[str, float] = dict(zip(op.floats, instr.floats, strict=True))

    def weight(self, at: int) -> Floats:
        """A weight that must be there."""
        found = self.weights[at]
        if found is None:
            raise DeviceError("an instruction lacks a weight")
        return found

    def vector(self, at: int, size: int) -> Floats | None:
        """The first `size` elements of a weight that may be missing."""
        found = self.weights[at]
        return None if found is None else found[:size]

    def out(self, values: Floats) -> None:
        """Stores the output, rounded to its slot's type; columns beyond the values become zero."""
        if self.target is None or self.out_slot is None:
            raise DeviceError("an instruction lacks an output")
        self.target[:, values.shape[1] :] = 0
        self.target[:, : values.shape[1]] = math.rounded(values, self.out_slot.dtype)

    def heads(self, x: Floats, count: int, size: int) -> Floats:
        """x as [T,heads,D], without the padding of each head; writes go through where x is not copied."""
        return x.reshape(len(x), count, -1)[..., :size]


def _embed(run: StepRun, o: _Operands) -> None:
    hidden = run.program.hidden_size
    rows = o.weight(0)[run.tokens] if o.quantized is None else o.quantized.values(run.tokens)
    values = rows * np.float32(o.floats["scale"])
    if run.step.n_external and run.step.external is not None:
        values[run.step.external_row[: run.step.n_external], :hidden] = run.step.external[: run.step.n_external]
    o.out(values)


def _rope_table(run: StepRun, o: _Operands) -> None:
    i, f, step = o.ints, o.floats, run.step
    frequencies = RopeFrequencies(
        RopeKind(i["kind"]),
        o.weight(0)[: i["h"]],
        o.vector(1, i["h"]),
        f["attention"],
        f["scaling"],
        f["theta"],
        i["original"],
    )
    sections = tuple(i[f"section{n}"] for n in range(3))
    prompt_len = np.repeat(step.prompt_len[: step.B], np.diff(step.q_offset[: step.B + 1]))
    positions = step.positions[: step.position_rows, : step.T]
    sections = sections if any(sections) else ()
    cos, sin = rope_table(frequencies, positions, prompt_len, sections, bool(i["interleaved"]), i["logn"])
    o.out(np.concatenate([cos, sin], axis=1))


def _rms_norm(run: StepRun, o: _Operands) -> None:
    n = o.ints["cols"]
    o.out(math.rms_norm(o.inputs[0][:, :n], o.weight(0)[:n], o.floats["eps"]))


def _layer_norm(run: StepRun, o: _Operands) -> None:
    n = o.ints["cols"]
    o.out(math.layer_norm(o.inputs[0][:, :n], o.weight(0)[:n], o.vector(1, n), o.floats["eps"]))


def _linear(run: StepRun, o: _Operands) -> None:
    y = _product(o, slice(None), 0, len(o.weight(0)) if o.quantized is None else o.quantized.spec.n, 2)
    if o.weights[1] is not None:
        y = y + o.weights[1]
    y = _activated(y, o.ints["act"])
    o.out(y + o.inputs[1] if len(o.inputs) > 1 and o.inputs[1] is not None else y)


def _product(o: _Operands, rows: Any, start: int, stop: int, grid_at: int) -> Floats:
    """y[rows,N]: some rows of the input times rows [start, stop) of the matrix; integers take input `grid_at`."""
    x = o.inputs[0][rows]
    if o.quantized is None:
        return math.product(x, o.weight(0)[start:stop])
    groups = o.quantized.spec.groups
    grid = np.ascontiguousarray(o.inputs[grid_at][rows, : 2 * groups])
    return o.quantized.part(start, stop).product(x, grid[:, :groups], grid[:, groups:].view(np.int32))


def _activated(y: Floats, act: int) -> Floats:
    if act < GATED:
        return math.activation(y, act)
    pairs = y.reshape(len(y), -1, 2, GATE_GROUP)
    return (math.activation(pairs[:, :, 0], act - GATED) * pairs[:, :, 1]).reshape(len(y), -1)


def _route(run: StepRun, o: _Operands) -> None:
    i = o.ints
    o.out(route(o.inputs[0][:, : i["experts"]], i["chosen"], bool(i["renormalize"]), o.floats["scale"]))


def _expert_linear(run: StepRun, o: _Operands) -> None:
    ids, _ = experts_of(o.inputs[1], run.program.limits.experts_per_token, o.ints["experts"])
    o.out(_activated(_expert_products(o, ids, ids.shape[1], 2), o.ints["act"]))


def _expert_sum(run: StepRun, o: _Operands) -> None:
    ids, weights = experts_of(o.inputs[1], run.program.limits.experts_per_token, o.ints["experts"])
    residual = o.inputs[2] if len(o.inputs) > 2 else None
    o.out(weighted_sum(_expert_products(o, ids, 1, 3), weights, residual))


def _expert_products(o: _Operands, ids: npt.NDArray[np.int32], share: int, grid_at: int) -> Floats:
    """y[T·k,N]; `share` rows of experts have the same row of the input."""
    n = (len(o.weight(0)) if o.quantized is None else o.quantized.spec.n) // o.ints["experts"]
    return by_expert(ids, lambda rows, e: _product(o, rows // share, e * n, (e + 1) * n, grid_at), n)


def _quantize(run: StepRun, o: _Operands) -> None:
    i, x = o.ints, o.inputs[0]
    if o.target is None or o.second is None:
        raise DeviceError("an instruction lacks an output")
    order = o.weights[0]
    if order is not None:
        x = x[:, order.view(np.int32)[: i["K"]]]
    elif i["head"]:
        x = x[:, : x.shape[1] // i["padded_head"] * i["padded_head"]].reshape(len(x), -1, i["padded_head"])
        x = x[:, :, : i["head"]].reshape(len(x), -1)
    result = quantize(x[:, : i["K"]], i["group"], i["planes"])
    o.target[:] = to_planes(result.integers, i["group"], i["planes"])
    groups = result.scales.shape[1]
    o.second[:] = 0
    o.second[:, :groups] = result.scales
    o.second[:, groups : 2 * groups] = result.sums.view(np.float32)


def _head_norm(run: StepRun, o: _Operands) -> None:
    _norm_heads(o.heads(o.inputs[0], o.ints["heads"], o.ints["D"]), o.weight(0), o.floats["eps"])
    o.out(o.inputs[0])


def _rope(run: StepRun, o: _Operands) -> None:
    x = o.heads(o.inputs[0], o.ints["heads"], o.ints["D"])
    math.rotate(x, o.inputs[1], o.ints["rotary"], o.ints["style"] == ROPE_STYLES["interleaved"])
    o.out(o.inputs[0])


def _rope_kv(run: StepRun, o: _Operands) -> None:
    i = o.ints
    q, k, v = (o.heads(x, heads, i["D"]) for x, heads in zip(o.inputs, (i["Hq"], i["Hkv"], i["Hkv"]), strict=False))
    for x, weight in ((q, o.weights[0]), (k, o.weights[1])):
        if weight is not None:
            _norm_heads(x, weight, o.floats["eps"])
        if len(o.inputs) > 3:
            math.rotate(x, o.inputs[3], i["rotary"], i["style"] == ROPE_STYLES["interleaved"])
    _store(run, i["layer"], k, v)
    o.out(o.inputs[0])


def _kv_write(run: StepRun, o: _Operands) -> None:
    k, v = (o.heads(x, o.ints["Hkv"], o.ints["D"]) for x in o.inputs)
    _store(run, o.ints["layer"], k, v)


def _attention(run: StepRun, o: _Operands) -> None:
    i, program = o.ints, run.program
    q = o.heads(o.inputs[0], i["Hq"], i["D"])
    args = math.AttentionArgs(
        o.floats["scale"],
        o.floats["softcap"],
        i["window"],
        operand_dtype(program.kv.dtype),
        o.vector(0, i["Hq"]),
        o.vector(1, i["Hq"]),
    )
    padded = o.inputs[0].shape[1] // i["Hq"]
    y = np.zeros((len(q), i["Hq"], padded), np.float32)
    for b, rows, length in run.sequences:
        blocks = run.step.block_table[b, : -(-length // program.kv.block_tokens)]
        pages = run.executable.kv[blocks, i["layer"]]  # [blocks, k | v, Hkv, tokens, D]
        k, v = pages.transpose(1, 0, 3, 2, 4).reshape(2, -1, i["Hkv"], i["D"])[:, :length]
        scales = None
        if program.kv.is_quantized:
            grids = run.executable.kv_scales[blocks, i["layer"]]  # [blocks, k | v, Hkv, tokens]
            scales = grids.transpose(1, 0, 3, 2).reshape(2, -1, i["Hkv"])[:, :length]
        y[rows, :, : i["D"]] = math.attention(q[rows], k, v, int(run.step.bidirectional[b]), args, scales)
    o.out(y.reshape(len(q), -1))


def _gather_rows(run: StepRun, o: _Operands) -> None:
    o.out(o.inputs[0][run.step.logit_row[run.row0 : run.row0 + run.rows["R"]]])


def _hidden(run: StepRun, o: _Operands) -> None:
    if run.step.out_hidden is not None:
        run.step.out_hidden[run.row0 : run.row0 + run.rows["R"]] = o.inputs[0][:, : o.ints["H"]]


def _sample(run: StepRun, o: _Operands) -> None:
    step, tops = run.step, run.program.limits.max_logprobs
    for row, logits in enumerate(o.inputs[0][:, : o.ints["V"]], run.row0):
        if step.out_logits is not None:
            step.out_logits[row] = logits
        sample = step.sample[row]
        result = sample_row(logits, sample, tops)
        step.out_token[row], step.out_status[row] = result.token, result.status
        step.out_logprob[row], step.out_rank[row] = result.logprob, result.rank
        found = len(result.top_ids)
        step.out_top_ids[row], step.out_top_logprobs[row] = -1, 0
        step.out_top_ids[row, :found], step.out_top_logprobs[row, :found] = result.top_ids, result.top_logprobs
        if sample["slot"] >= 0 and sample["target"] < 0 and result.status == STATUS_OK:
            run.executable.last_token[sample["slot"]] = result.token


def _norm_heads(x: Floats, weight: Floats, eps: float) -> None:
    x[:] = math.rms_norm(x, weight[: x.shape[-1]], eps)


def _store(run: StepRun, layer: int, k: Floats, v: Floats) -> None:
    """Puts k, v [T,Hkv,D] of the step's tokens in their blocks."""
    kv = run.program.kv
    for b, rows, length in run.sequences:
        at = np.arange(length - (rows.stop - rows.start), length)
        blocks, offsets = run.step.block_table[b][at // kv.block_tokens], at % kv.block_tokens
        for which, x in enumerate((k, v)):
            heads = kept(x[rows], kv.dtype)
            run.executable.kv[blocks, layer, which, :, offsets] = heads.values
            if heads.scales is not None:
                run.executable.kv_scales[blocks, layer, which, :, offsets] = heads.scales


_OPERATIONS: dict[str, Callable[[StepRun, _Operands], None]] = {
    "embed": _embed,
    "rope_table": _rope_table,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "quantize": _quantize,
    "head_norm": _head_norm,
    "rope": _rope,
    "kv_write": _kv_write,
    "rope_kv": _rope_kv,
    "attention": _attention,
    "act": lambda run, o: o.out(math.activation(o.inputs[0], o.ints["act"])),
    "mul": lambda run, o: o.out(o.inputs[0] * o.inputs[1]),
    "add": lambda run, o: o.out(o.inputs[0] + o.inputs[1]),
    "scale": lambda run, o: o.out(o.inputs[0] * np.float32(o.floats["factor"])),
    "softcap": lambda run, o: o.out(np.float32(o.floats["cap"]) * np.tanh(o.inputs[0] / np.float32(o.floats["cap"]))),
    "cast": lambda run, o: o.out(o.inputs[0].copy()),
    "gather_rows": _gather_rows,
    "hidden": _hidden,
    "sample": _sample,
    "route": _route,
    "expert_linear": _expert_linear,
    "expert_sum": _expert_sum,
    "gate_rows": lambda run, o: o.out(o.inputs[0] * math.sigmoid(o.inputs[1][:, :1])),
}
