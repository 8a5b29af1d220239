"""Programs of a few instructions, made by hand: the op-level interface of a device.

`Maker` lays slots and weights out as lowering would, `Bench` is such a program on a device; `both` and `each` run it on
the device under test and on the reference with the same paddings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from dashinfer_lite.devices.base import DeviceInfo
from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.devices.step import Step
from dashinfer_lite.graph.ops import OPS
from dashinfer_lite.graph.program import Instr, KvSpec, Limits, Part, Program, Slot, WeightSpec
from dashinfer_lite.weights.grid import Codes

Array = np.ndarray
ALL = bool(os.environ.get("DASHINFER_TEST_ALL"))
ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1}
QUANT_CELL = 64
BAND = 32
NO_KV = KvSpec(0, 1, 32, "f32", 32, 1)


def examples(count: int) -> Callable[[Any], Any]:
    """So many examples, or eight times as many in the full matrix. A device stays open over all of them."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=8 * count if ALL else count, deadline=None, suppress_health_check=checks)


def round_up(x: int, to: int) -> int:
    """The next multiple."""
    return -(-x // to) * to


def bf16(x: Array) -> Array:
    """fp32 values rounded to bf16 (nearest even), as fp32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def rounded(x: Array, dtype: str) -> Array:
    """fp32 values as `dtype` holds them, as fp32."""
    x = np.asarray(x, np.float32)
    return bf16(x) if dtype == "bf16" else x.astype(np.float16).astype(np.float32) if dtype == "f16" else x


def stored(x: Array, dtype: str) -> Array:
    """fp32 values as raw elements of `dtype`: bf16 as its bits."""
    x = np.ascontiguousarray(x, np.float32)
    return (bf16(x).view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else x.astype(f"f{ITEM_BYTES[dtype]}")


def interleaved(halves: list[Array], cols: int) -> Array:
    """Gate rows and up rows in alternating groups of 16, padded to `cols` each."""
    n, k = halves[0].shape
    groups = np.zeros((2, cols, k), np.float32)
    groups[:, :n] = halves
    return groups.reshape(2, cols // 16, 16, k).transpose(1, 0, 2, 3).reshape(2 * cols, k)


class Maker:
    """Collects slots, weights and instructions; every slot gets memory of its own."""

    def __init__(
        self,
        info: DeviceInfo,
        *,
        tokens: int = 70,
        tail_rows: int = 32,
        seqs: int = 8,
        logprobs: int = 4,
        kv: KvSpec = NO_KV,
        vocab: int = 64,
        hidden: int = 32,
        chosen: int = 0,
    ) -> None:
        self.info = info
        self.limits = Limits(tokens, tail_rows, seqs, logprobs, chosen)
        self.kv, self.vocab, self.hidden = kv, vocab, hidden
        self.slots: list[Slot] = []
        self.weights: list[WeightSpec] = []
        self.body: list[Instr] = []
        self.tail: list[Instr] = []
        self.arena_bytes = 0

    def pad(self, cols: int) -> int:
        """Columns as the device pads them."""
        return round_up(cols, self.info.col_align)

    def pad_head(self, size: int) -> int:
        """A head as the device pads it."""
        return round_up(size, self.info.head_align)

    def slot(self, cols: int, dtype: Any = "f32", rows: Any = "T") -> int:
        """A new activation of (padded) columns."""
        cols = self.pad(cols)
        self.slots.append(Slot(dtype, rows, cols, offset=self.arena_bytes))
        count = round_up(self.limits.capacity(rows), BAND)
        self.arena_bytes = round_up(self.arena_bytes + count * cols * ITEM_BYTES[dtype], 64)
        return len(self.slots) - 1

    def view(self, parent: int, first_col: int, cols: int) -> int:
        """A column range of a slot."""
        root = self.slots[parent]
        self.slots.append(Slot(root.dtype, root.rows, self.pad(cols), parent, first_col))
        return len(self.slots) - 1

    def matrix(self, n: int, k: int, dtype: Any = "f32", *, kind: Any = "linear", group: int = 0) -> int:
        """A weight [n, k]; columns in groups of `group`, each padded like a head (0: all padded like columns)."""
        padded = self.pad_head(group) if group else self.pad(k)
        return self._weight(kind, dtype, self.pad(n), k, group or k, padded)

    def quantized(self, n: int, k: int, *, bits: int = 8, group: int = 0, scales: Any = "f32") -> int:
        """A quantized weight [n, k] with a scale for each `group` columns (0: for all)."""
        width = min(group or k, k)
        at = self._weight("linear", f"u{bits}", self.pad(n), k, width, round_up(width, QUANT_CELL))
        self.weights[at] = replace(self.weights[at], quant_group=width, scale_dtype=scales)
        return at

    def quantize(self, x: int, k: int, *, group: int = 0, planes: int = 2, **attrs: Any) -> tuple[int, int]:
        """Quantizes an activation: the slots of its planes and its grid."""
        width = min(group or k, k)
        groups = -(-k // width)
        rows = self.slots[x].rows
        out = (self.slot(planes * groups * round_up(width, QUANT_CELL), "i8", rows), self.slot(2 * groups, rows=rows))
        weights = attrs.pop("weights", ())
        add = self.tail_op if rows == "R" else self.op
        add("quantize", (x,), out, weights, K=k, group=width, planes=planes, **attrs)
        return out

    def vector(self, n: int) -> int:
        """A vector of n elements, fp32."""
        return self._weight("vector", "f32", self.pad(n), 1, 1, 1)

    def op(
        self,
        op: str,
        inputs: Sequence[int] = (),
        outputs: Sequence[int] = (),
        weights: Sequence[int] = (),
        **attrs: Any,
    ) -> None:
        """Appends an instruction to the body; attributes by the catalogue's names, 0 where not given."""
        self.body.append(self._instr(op, inputs, outputs, weights, attrs))

    def tail_op(
        self,
        op: str,
        inputs: Sequence[int] = (),
        outputs: Sequence[int] = (),
        weights: Sequence[int] = (),
        **attrs: Any,
    ) -> None:
        """Appends an instruction to the tail."""
        self.tail.append(self._instr(op, inputs, outputs, weights, attrs))

    def program(self) -> Program:
        """What was collected."""
        return Program(
            tuple(self.slots),
            tuple(self.body),
            tuple(self.tail),
            tuple(self.weights),
            self.kv,
            self.limits,
            max(self.arena_bytes, 64),
            self.vocab,
            self.hidden,
        )

    def _weight(self, kind: Any, dtype: Any, n: int, k: int, group: int, padded: int) -> int:
        rows = np.arange(n, dtype=np.int32)
        name = f"w{len(self.weights)}"
        self.weights.append(
            WeightSpec(kind, name, dtype, n, k, group, padded, (Part(name),), np.zeros_like(rows), rows)
        )
        return len(self.weights) - 1

    def _instr(
        self, op: str, inputs: Sequence[int], outputs: Sequence[int], weights: Sequence[int], attrs: dict[str, Any]
    ) -> Instr:
        known = OPS[op]
        assert set(attrs) <= {*known.ints, *known.floats}, attrs
        ints = tuple(int(attrs.get(name, 0)) for name in known.ints)
        floats = tuple(float(attrs.get(name, 0)) for name in known.floats)
        return Instr(op, tuple(inputs), tuple(outputs), tuple(weights), ints, floats)


@dataclass
class Span:
    """Tokens [start, start + count) of one sequence in a step.

    `tokens` are ids (None: zeros), `blocks` the sequence's block table, `logits` the rows (of the span) whose logits
    are wanted, `positions` [rows, count] replace the running numbers, `slot` takes the token of the last logit row.
    """

    count: int
    start: int = 0
    tokens: Sequence[int] | None = None
    blocks: Sequence[int] = ()
    logits: Sequence[int] = ()
    prompt_len: int = 0
    bidirectional: int = 0
    adapter: int = 0
    slot: int = -1
    positions: Array | None = None


def fill_step(step: Step, spans: Sequence[Span], clear: Sequence[int] = ()) -> Step:
    """Describes the spans, one sequence each; greedy draws that report nothing, unless the caller changes `sample`."""
    step.T = step.R = 0
    step.B = len(spans)
    step.position_rows = max((len(s.positions) for s in spans if s.positions is not None), default=1)
    for b, span in enumerate(spans):
        rows = slice(step.T, step.T + span.count)
        step.tokens[rows] = 0 if span.tokens is None else span.tokens
        step.positions[:, rows] = np.arange(span.start, span.start + span.count)
        if span.positions is not None:
            step.positions[: len(span.positions), rows] = span.positions
        step.q_offset[b : b + 2] = rows.start, rows.stop
        step.kv_len[b] = span.start + span.count
        step.prompt_len[b], step.bidirectional[b], step.adapter[b] = span.prompt_len, span.bidirectional, span.adapter
        step.block_table[b, : len(span.blocks)] = span.blocks
        wanted = slice(step.R, step.R + len(span.logits))
        step.logit_row[wanted] = rows.start + np.asarray(span.logits, np.int32)
        step.sample[wanted] = plain_sample(step)
        if span.logits:
            step.sample["slot"][wanted.stop - 1] = span.slot
        step.T, step.R = rows.stop, wanted.stop
    step.clear_blocks[: len(clear)] = clear
    step.n_clear = len(clear)
    step.n_external = 0
    return step


def plain_sample(step: Step) -> Any:
    """A record that draws greedily and changes nothing."""
    record = np.zeros((), step.sample.dtype)
    record["repetition_penalty"] = record["top_p"] = 1
    record["target"] = record["slot"] = -1
    return record


class Bench:
    """A hand-made program on a device."""

    def __init__(self, device: Any, maker: Maker, *, max_blocks: int = 8, max_rows: int | None = None) -> None:
        self.maker = maker
        self.device = device
        self.program = maker.program()
        self.executable = device.create(self.program)
        self.step = Step(
            self.program.limits, max_blocks, max_rows, self.program.vocab_size, keep_logits=bool(maker.tail)
        )

    def matrix(self, weight: int, values: Array, source: str | None = None) -> None:
        """Fills a linear or table weight with fp32 values [n, k], stored as `source`.

        The default is the weight's own type, and fp32 for one that is quantized.
        """
        spec = self.program.weights[weight]
        source = source or ("f32" if spec.quant_group else spec.dtype)
        part = np.full(spec.n, -1, np.int32)
        part[: len(values)] = 0
        rows = np.arange(spec.n, dtype=np.int32)
        self.executable.write_rows(weight, 0, [stored(values, source)], source, part, rows)

    def codes(self, weight: int, rows: Codes) -> None:
        """Fills a quantized weight."""
        spec = self.program.weights[weight]
        part = np.full(spec.n, -1, np.int32)
        part[: len(rows.codes)] = 0
        self.executable.write_codes(weight, 0, [rows], part, np.arange(spec.n, dtype=np.int32))

    def vector(self, weight: int, values: Array) -> None:
        """Fills a vector, with zeros as padding."""
        padded = np.zeros(self.program.weights[weight].n, np.float32)
        padded[: len(values)] = values
        self.executable.write_vector(weight, padded)

    def put(self, slot: int, values: Array) -> None:
        """Sets an activation; padded columns become zero."""
        cols = self.program.slots[slot].cols
        padded = np.zeros((len(values), cols), np.float32)
        padded[:, : values.shape[1]] = values
        self.executable.slot_write(slot, len(values), padded)

    def put_heads(self, slot: int, values: Array) -> None:
        """Sets an activation of heads [T, heads, D], each padded with zeros."""
        self.put(slot, self.padded_heads(values))

    def padded_heads(self, values: Array) -> Array:
        """[T, heads, D] as padded columns."""
        rows, heads, size = values.shape
        padded = np.zeros((rows, heads, self.maker.pad_head(size)), np.float32)
        padded[:, :, :size] = values
        return padded.reshape(rows, -1)

    def poison(self, slot: int, rows: int) -> None:
        """Makes an activation NaN, so that an element which nobody writes is noticed."""
        self.executable.slot_write(slot, rows, np.full((rows, self.program.slots[slot].cols), np.nan, np.float32))

    def get(self, slot: int, rows: int) -> Array:
        """An activation with its padding."""
        result: Array = self.executable.slot_read(slot, rows)
        return result

    def get_heads(self, slot: int, rows: int, heads: int, size: int) -> Array:
        """An activation of heads as [T, heads, D]; what lies beyond D must be zero."""
        x = self.get(slot, rows).reshape(rows, -1, self.maker.pad_head(size))
        assert not x[:, :, size:].any(), "padded head columns are zero"
        return x[:, :heads, :size]

    def run(self, *spans: Span, clear: Sequence[int] = ()) -> Step:
        """One step."""
        return self.submit(fill_step(self.step, spans, clear))

    def submit(self, step: Step) -> Step:
        """One step as it is."""
        self.executable.wait(self.executable.submit(step))
        return step

    def close(self) -> None:
        """Frees the program."""
        self.executable.close()


def both(device: Any, maker: Maker, **options: Any) -> AbstractContextManager[list[Bench]]:
    """The program on the device and on the reference."""
    return _benches([device, _reference(maker)], maker, options)


def each(device: Any, maker: Maker, **options: Any) -> AbstractContextManager[list[Bench]]:
    """The same where an oracle judges both: the reference, which knows no tiers, comes beside the scalar one alone."""
    beside = ALL or device.info.name != "cpu" or device.info.tier == "scalar"
    return _benches([device, _reference(maker)] if beside else [device], maker, options)


def _reference(maker: Maker) -> ReferenceDevice:
    """With the device's paddings."""
    return ReferenceDevice(col_align=maker.info.col_align, head_align=maker.info.head_align)


@contextmanager
def _benches(devices: list[Any], maker: Maker, options: dict[str, Any]) -> Iterator[list[Bench]]:
    benches = [Bench(device, maker, **options) for device in devices]
    try:
        yield benches
    finally:
        for bench in benches:
            bench.close()


def assert_bits(device: Any, got: Array, expected: Array) -> None:
    """The same bits; the same to a few ulp where sums may take another order for another number of rows."""
    if device.info.name != "cuda":
        np.testing.assert_array_equal(got, expected)
        return
    expected = expected.astype(np.float64)
    assert_close(got, expected, 2.0**-18 * (np.abs(expected) + np.abs(expected).max()))


def assert_close(got: Array, expected: Array, tolerance: Array | float) -> None:
    """|got - expected| <= tolerance, elementwise; NaN is never close."""
    error = np.abs(got.astype(np.float64) - expected)
    bad = ~(error <= tolerance)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        limit = np.broadcast_to(tolerance, error.shape)[at]
        raise AssertionError(
            f"{bad.sum()} of {bad.size} differ, first at {at}: {got[at]!r} for {expected[at]!r}, tolerance {limit:.3e}"
        )
