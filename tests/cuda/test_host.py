"""The host library's own decisions: which kernels a chip gets, how a step becomes graphs, what failures say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_emulator import Emulator, emulator, missing
from one_op import Bench, Maker, Span, fill_step, rounded

from dashinfer_lite.devices import open_device
from dashinfer_lite.devices.step import Step
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.graph.program import KvSpec

BLOCK = 32


@pytest.fixture
def emulated() -> Emulator:
    """The device "cuda" on the emulator."""
    if why := missing():
        pytest.skip(why)
    made = emulator()
    made.register()
    return made


@pytest.fixture
def device(emulated: Emulator) -> Iterator[Any]:
    opened = open_device("cuda")
    yield opened
    opened.close()


class Counter:
    """How often the driver's entry points were called since the last look."""

    def __init__(self, emulated: Emulator) -> None:
        self._control = emulated.control()
        self._seen: dict[str, int] = {}

    def since(self, name: str) -> int:
        now = self._control.emu_count(name.encode())
        before, self._seen[name] = self._seen.get(name, 0), now
        return int(now - before)


def chain(info: Any) -> Maker:
    """Embed, kv_write, attention, sample: a model that is its own hidden state."""
    kv = KvSpec(1, 1, 32, "f32", BLOCK, 40, host_blocks=3)
    maker = Maker(info, tokens=16, tail_rows=8, seqs=8, vocab=24, hidden=32, kv=kv)
    x, y, logits = maker.slot(32), maker.slot(32), maker.slot(32, rows="R")
    maker.op("embed", (), (x,), (maker.matrix(32, 32, "f32", kind="table"),), scale=1)
    maker.op("kv_write", (x, x), Hkv=1, D=32)
    maker.op("attention", (x,), (y,), Hq=1, Hkv=1, D=32, scale=0.2)
    maker.tail_op("gather_rows", (y,), (logits,))
    maker.tail_op("sample", (logits,), V=24)
    return maker


def decode(bench: Bench, lengths: list[int]) -> np.ndarray:
    """One more token of each sequence, without logits on the host; returns what was drawn."""
    spans = [
        Span(1, length, [b + 1], tuple(range(4 * b, 4 * b + 4)), logits=(0,), slot=b)
        for b, length in enumerate(lengths)
    ]
    step = bench.run(*spans)
    return step.out_token[: step.R].copy()


def chain_on(device: Any) -> Bench:
    """The chain with random words; no logits on the host, which graphs would not bring there."""
    made = Bench(device, chain(device.info))
    made.step.out_logits = None
    made.matrix(0, rounded(np.random.default_rng(0).standard_normal((24, 32)), "f32"))
    return made


@pytest.fixture
def bench(device: Any) -> Iterator[Bench]:
    made = chain_on(device)
    yield made
    made.close()


def test_graphs_serve_their_bucket(emulated: Emulator, bench: Bench) -> None:
    """A bucket's first step runs launch by launch, the second is captured, others are replayed."""
    counter = Counter(emulated)
    results = []
    for lengths in ([3, 4, 5], [4, 5, 6], [9, 9, 9, 9], [5, 6, 7]):
        for name in ("cuLaunchKernel", "cuGraphLaunch"):
            counter.since(name)
        results.append(decode(bench, lengths))
        launched = counter.since("cuLaunchKernel"), counter.since("cuGraphLaunch")
        assert launched == [(5, 0), (5, 1), (0, 1), (0, 1)][len(results) - 1]
    emulated.set("graphs", "0")
    try:
        plain = chain_on(open_device("cuda"))
        for lengths, expected in zip(([3, 4, 5], [4, 5, 6], [9, 9, 9, 9], [5, 6, 7]), results, strict=True):
            np.testing.assert_array_equal(decode(plain, lengths), expected)
        plain.close()
    finally:
        emulated.set("graphs", "")


def test_a_step_is_one_copy(emulated: Emulator, bench: Bench) -> None:
    """Whatever a step says goes to the GPU in one piece; lists, where there are any, in a second."""
    counter = Counter(emulated)
    decode(bench, [3, 4])
    counter.since("cuMemcpyHtoDAsync_v2")
    decode(bench, [4, 5])
    assert counter.since("cuMemcpyHtoDAsync_v2") == 1
    bench.run(Span(2, 0, [1, 2], (30,), logits=(1,)), clear=(30,))
    assert counter.since("cuMemcpyHtoDAsync_v2") == 2


def test_two_steps_in_flight(bench: Bench) -> None:
    """A second step starts before the first is waited for, on the token that the GPU drew."""
    first = fill_step(bench.step, [Span(3, 0, [5, 6, 7], (0,), logits=(2,), slot=3)], (0,))
    second = Step(bench.program.limits, 8, None, 24)
    fill_step(second, [Span(1, 3, [-4], (0,), logits=(0,), slot=3)])
    tickets = [bench.executable.submit(first), bench.executable.submit(second)]
    bench.executable.wait(tickets[1])
    drawn = int(second.out_token[0])
    bench.executable.wait(tickets[0])
    known = int(first.out_token[0])
    step = bench.run(Span(4, 0, [5, 6, 7, known], (1,), logits=(3,)), clear=(1,))
    assert int(step.out_token[0]) == drawn
    with pytest.raises(DeviceError, match="never given out"):
        bench.executable.wait(tickets[1] + 5)


@pytest.mark.parametrize("entry", ["cuMemAlloc_v2", "cuMemHostAlloc"])
def test_memory_that_is_not_there(emulated: Emulator, device: Any, entry: str) -> None:
    """Whichever allocation of a program fails: a sentence, and everything is given back."""
    control = emulated.control()
    held = [control.emu_count(name) for name in (b"allocations", b"pinned")]
    for nth in range(1, 20):
        control.emu_fail(entry.encode(), nth)
        try:
            device.create(chain(device.info).program()).close()
        except DeviceError as error:
            assert "no memory for" in str(error) or "no pinned memory for" in str(error)
            assert [control.emu_count(name) for name in (b"allocations", b"pinned")] == held
        else:
            control.emu_fail(entry.encode(), 10**9)
            assert nth > 1
            return
    raise AssertionError("a program without end")


@pytest.mark.parametrize("entry", ["cuGraphLaunch", "cuEventSynchronize", "cuMemcpyHtoDAsync_v2"])
def test_a_gpu_that_fails(emulated: Emulator, bench: Bench, entry: str) -> None:
    """The step fails with the driver's words, and every later one too: nothing computed is to be trusted."""
    for length in (3, 4):
        decode(bench, [length])
    emulated.control().emu_fail(entry.encode(), 1)
    with pytest.raises(DeviceError, match=r"CUDA error \d+"):
        decode(bench, [5])
    for _ in range(2):
        with pytest.raises(DeviceError, match="failed in an earlier step"):
            decode(bench, [6])


def test_graphs_that_cannot_be_made(emulated: Emulator, bench: Bench) -> None:
    """Without graphs the program runs on, launch by launch."""
    expected = [decode(bench, [3, 3]) for _ in range(3)]
    other = chain_on(open_device("cuda"))
    emulated.control().emu_fail(b"cuGraphInstantiateWithFlags", 1)
    for tokens in expected:
        np.testing.assert_array_equal(decode(other, [3, 3]), tokens)
    other.close()


def test_a_bucket_ends_where_the_step_ends(emulated: Emulator, bench: Bench) -> None:
    """Rows that a bucket has and a step lacks are those of an earlier step: they must not be written again."""
    emulated.set("graphs", "0")
    plain = chain_on(open_device("cuda"))
    emulated.set("graphs", "")
    drawn = []
    for each in (bench, plain):
        for _ in range(2):  # into both of the blocks that steps are copied from
            decode(each, [3, 4, 5, 6])
        spans = [Span(1, 6, [9], (12,), logits=(0,)), Span(1, 4, [2], (4,)), Span(1, 5, [3], (8,))]
        step = each.run(*spans)
        drawn.append((step.out_token[:1].tolist(), [bytes(block) for block in each.executable.kv_read([12])]))
    assert drawn[0] == drawn[1]
    plain.close()


def swap(step: Step, out: list[tuple[int, int]], back: list[tuple[int, int]]) -> Step:
    """Lets a step copy (block, host block) out, then others back."""
    step.swap_out = np.array(out, np.int32).reshape(-1, 2)
    step.swap_in = np.array(back, np.int32).reshape(-1, 2)
    return step


@pytest.mark.parametrize("hurry", [0, 1])
def test_swaps_beside_a_step_in_flight(emulated: Emulator, bench: Bench, hurry: int) -> None:
    """A block is copied out and reused, and comes back elsewhere, all in one step, with another one in flight."""
    emulated.control().emu_hurry(hurry)
    try:
        bench.run(Span(3, 0, [5, 6, 7], (0,)), Span(3, 0, [8, 9, 10], (1,)), clear=(0, 1))
        expected = [bytes(block) for block in bench.executable.kv_read([0, 1])]
        other = Step(bench.program.limits, 8, None, 24)
        first = fill_step(other, [Span(16, 0, range(16), (5,), logits=(15,), slot=3)], (5,))
        second = swap(fill_step(bench.step, [Span(2, 0, [1, 2], (0,))], (0,)), [(0, 2), (1, 0)], [(1, 2), (7, 0)])
        tickets = [bench.executable.submit(first), bench.executable.submit(second)]
        for ticket in tickets:
            bench.executable.wait(ticket)
        found = [bytes(block) for block in bench.executable.kv_read([1, 7, 0])]
        assert found[:2] == expected and found[2] not in expected
    finally:
        emulated.control().emu_hurry(0)


def test_swapped_blocks_are_counted(emulated: Emulator, device: Any) -> None:
    """They are one piece of pinned memory; blocks that are filled from them count as used."""
    pinned = emulated.control().emu_count(b"pinned")
    bench = chain_on(device)
    with_blocks = emulated.control().emu_count(b"pinned") - pinned
    bench.run(Span(1, 0, [5], (0,)), clear=(0,))
    used = bench.executable.stats()["kv_bytes"]
    swap(bench.step, [(0, 1)], [(9, 1)])
    bench.run(Span(1, 0, [5], (2,)), clear=(2,))
    assert bench.executable.stats()["kv_bytes"] == 3 * used
    bench.close()
    maker = chain(device.info)
    maker.kv = replace(maker.kv, host_blocks=0)
    plain = Bench(device, maker)
    assert with_blocks == emulated.control().emu_count(b"pinned") - pinned + 1
    plain.close()


@pytest.mark.parametrize("entry", ["cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2", "cuStreamWaitEvent"])
def test_a_swap_that_fails(emulated: Emulator, bench: Bench, entry: str) -> None:
    """So does its step, and every later one."""
    decode(bench, [3])
    # The step's own block is copied before its swaps.
    emulated.control().emu_fail(entry.encode(), 2 if entry == "cuMemcpyHtoDAsync_v2" else 1)
    swap(bench.step, [(0, 1)], [(9, 1)])
    with pytest.raises(DeviceError, match="copying KV blocks"):
        decode(bench, [4])
    with pytest.raises(DeviceError, match="failed in an earlier step"):
        decode(bench, [4])


def test_more_steps_than_fit(bench: Bench) -> None:
    """A third step waits for the first, whose results are there before anybody asks for them."""
    steps = [Step(bench.program.limits, 8, None, 24) for _ in range(5)]
    for at, step in enumerate(steps):
        fill_step(step, [Span(3, 0, [at, at + 1, at + 2], (at,), logits=(2,))], (at,))
    tickets = [bench.executable.submit(step) for step in steps]
    for ticket in reversed(tickets):
        bench.executable.wait(ticket)
    for at, step in enumerate(steps):
        alone = bench.run(Span(3, 0, [at, at + 1, at + 2], (20,), logits=(2,)), clear=(20,))
        assert step.out_token[0] == alone.out_token[0]


def test_long_tables_and_lists_grow(device: Any) -> None:
    """A step that is larger than any before gets larger blocks of memory, and graphs are made anew."""
    maker = chain(device.info)
    bench = Bench(device, maker, max_blocks=40)
    bench.step.out_logits = None
    bench.matrix(0, rounded(np.random.default_rng(0).standard_normal((24, 32)), "f32"))
    expected = [decode(bench, [3, 3]) for _ in range(3)][-1]
    mask = np.full(1, 0xFFFFFFFF, np.uint32)
    for history, tables in ((10, 1), (100_000, 8)):
        tokens = np.arange(history, dtype=np.int32) % 24
        spans = [Span(1, 40 * BLOCK - 1, [1], range(40), logits=(0,)) for _ in range(tables)]
        step = fill_step(bench.step, spans)
        step.sample["history"][0], step.sample["history_len"][0] = tokens.ctypes.data, history
        step.sample["frequency_penalty"][0], step.sample["mask"][0] = 1e-9, mask.ctypes.data
        bench.submit(step)
    for _ in range(3):
        np.testing.assert_array_equal(decode(bench, [3, 3]), expected)
    bench.close()


def test_closing_gives_everything_back(emulated: Emulator) -> None:
    """Device and pinned memory, also where a step is still in flight."""
    control = emulated.control()
    held = [control.emu_count(name) for name in (b"allocations", b"pinned")]
    device = open_device("cuda")
    made = Bench(device, chain(device.info))
    made.executable.submit(fill_step(made.step, [Span(1, 0, [1], (0,), logits=(0,))], (0,)))
    device.close()
    made.close()
    assert [control.emu_count(name) for name in (b"allocations", b"pinned")] == held


def test_numbers_that_fp16_lacks(device: Any) -> None:
    """A finite weight does not become infinite without a word; what was infinite stays so."""
    maker = Maker(device.info)
    x, w = maker.slot(32), maker.matrix(32, 32, "f16")
    maker.op("linear", (x, -1), (maker.slot(32),), (w, -1))
    bench = Bench(device, maker)
    values = np.full((32, 32), 65504.0, np.float32)
    values[3, 3] = np.inf
    bench.matrix(w, values, "f32")
    values[5, 7] = -65536
    for source in ("f32", "bf16"):
        with pytest.raises(DeviceError, match=r"row .* holds values beyond 65504"):
            bench.matrix(w, values, source)
    bench.close()


def test_which_kernels_a_chip_gets(emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly its own, else the newest older ones of its generation; others are compiled, or refused."""
    for arch, served in ((80, True), (86, True), (89, True), (75, False), (90, False)):
        monkeypatch.setenv("DASHINFER_EMU_ARCH", str(arch))
        emulated.set("nvrtc", "/nowhere/libnvrtc.so")
        try:
            opened = open_device("cuda")
        except DeviceError as error:
            assert not served and ("compiled" in str(error) or "cannot read" in str(error) or "load" in str(error))
        else:
            assert served and opened.info.tier == "sm_80"
            opened.close()
        finally:
            emulated.set("nvrtc", "")
