"""Impossible steps are refused as a whole, with a reason, and the program goes on; so are blocks that are not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from every_op import X, everything
from one_op import Bench, Maker, Span, fill_step

from dashinfer_lite.devices.step import Step
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.program import Limits


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
    "a sequence that ends before it begins": (
        several(set_in("q_offset", 1, 12), set_in("kv_len", 0, 12)),
        "sequence 1 has -3 new",
    ),
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
    "a swapped block on a device without": (set_count(swap_out=np.array([[0, 0]], np.int32)), "swapped block"),
    "a block that comes from nowhere": (set_count(swap_in=np.array([[0, 0]], np.int32)), "swapped block"),
    "swaps of wide numbers": (set_count(swap_in=np.array([[0, 0]], np.int64)), "pairs of 32-bit"),
    "external rows that descend": (
        several(set_count(n_external=2), set_in("external_row", slice(0, 2), [3, 1])),
        "ascend",
    ),
    "an external row too far": (several(set_count(n_external=1), set_in("external_row", 0, 9)), "external rows"),
    "too many external rows": (set_count(n_external=10_000), "external states"),
    "no external states": (set_count(n_external=1, external=None), "external states"),
    "narrow external states": (set_count(n_external=1, external=np.zeros((2, 63), np.float32)), "external states"),
    "wide external numbers": (set_count(n_external=1, external=np.zeros((2, 64))), "external states"),
    "few external states": (set_count(n_external=3), "external states"),
    "logits of another vocabulary": (set_count(out_logits=np.zeros((64, 63), np.float32)), "63 logit columns"),
    "alternatives of another program": (set_count(max_logprobs=3), "3 alternatives"),
}


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_steps(default_device: Any, case: str) -> None:
    """An impossible step is refused as a whole, and the program goes on as if it had not been asked."""
    change, reason = STEPS[case]
    bench = Bench(default_device, everything(default_device.info))
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
    kept = {name: getattr(bench.step, name) for name in ("out_logits", "max_logprobs", "swap_out", "swap_in")}
    step = good()
    if case == "a drawing slot too far":
        step.sample["slot"][1] = 8
    else:
        change(step)
    with pytest.raises(DeviceError, match=reason if default_device.info.name == "cpu" else None):
        cpu_submit(bench, step)
    for name, array in kept.items():
        setattr(step, name, array)
    np.testing.assert_array_equal(bench.submit(good()).out_logits[:2], before)
    bench.close()


def cpu_submit(bench: Bench, step: Any) -> None:
    """Submits and waits: a device with steps in flight may say no at either."""
    bench.executable.wait(bench.executable.submit(step))


def test_steps_made_for_a_larger_program(default_device: Any) -> None:
    """Arrays with room for more do not make a program take more."""
    bench = Bench(default_device, everything(default_device.info))
    step = Step(Limits(128, 32, 8, bench.program.limits.max_logprobs), 8, vocab_size=64)
    with pytest.raises(DeviceError):
        bench.submit(fill_step(step, [Span(65, blocks=(0, 1, 2))]))
    with pytest.raises(DeviceError):
        bench.submit(fill_step(step, [Span(1, blocks=(0,))] * 5))
    bench.submit(fill_step(step, [Span(64, blocks=(0, 1), logits=range(64))]))
    bench.close()


def test_programs_without_a_cache(default_device: Any) -> None:
    """There are no blocks to clear."""
    maker = Maker(default_device.info)
    x = maker.slot(32)
    maker.op("scale", (x,), (x,), factor=2)
    bench = Bench(default_device, maker)
    with pytest.raises(DeviceError, match="cleared block"):
        bench.run(Span(3), clear=(0,))
    bench.put(x, np.ones((3, 32)))
    bench.run(Span(3))
    assert (bench.get(x, 3) == 2).all()
    bench.close()


def test_blocks_that_are_not_there(default_device: Any) -> None:
    """kv_read and kv_write know their blocks and their size."""
    executable = default_device.create(everything(default_device.info).program())
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


def test_activations_that_are_not_there(default_device: Any) -> None:
    """Test access refuses slots and rows that the program lacks."""
    bench = Bench(default_device, everything(default_device.info))
    with pytest.raises(DeviceError):
        bench.executable.slot_read(X, 65)
    with pytest.raises(DeviceError):
        bench.executable.slot_write(X, 65, np.zeros((65, 64), np.float32))
    bench.close()
