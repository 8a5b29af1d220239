"""Cached blocks that leave the device for host memory, and return: on the fake device, prompt and late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake import oracle

from dashinfer_lite.engine import Engine
from dashinfer_lite.engine.host_blocks import HostBlocks, Swap
from dashinfer_lite.engine.prefix_cache import Entry
from dashinfer_lite.errors import DeviceError
from dashinfer_lite.sampling_params import SamplingParams

Make = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
TEXTS = [[text, *range(1, 16)] for text in range(20, 30)]  # ten prompts of four blocks of four tokens


def small(make_engine: Make, host_blocks: int = 16, **options: Any) -> Engine:
    """An engine with room for one and a half of the texts on the device."""
    return make_engine(program={"blocks": 6, "host_blocks": host_blocks}, **options)


def ask(engine: Engine, prompt: list[int], params: SamplingParams = GREEDY) -> int:
    """Answers a prompt, rightly; returns how many of its tokens were cached."""
    output = engine.submit(prompt, params).result()
    assert output.outputs[0].token_ids == oracle(prompt, params).token_ids
    return output.usage.cached_tokens


def swaps(engine: Engine) -> tuple[int, int, int]:
    """Blocks out, blocks in, and prompt tokens found in host memory."""
    names = ("kv_blocks_swapped_out", "kv_blocks_swapped_in", "prefix_host_hit_tokens")
    found = [engine.metrics()[name] for name in names]
    return found[0], found[1], found[2]


def test_a_prefix_leaves_and_returns(make_engine: Make) -> None:
    """The second text pushes the first out; asked for again, it is not computed again."""
    engine = small(make_engine)
    assert [ask(engine, text) for text in TEXTS[:2]] == [0, 0]
    assert swaps(engine)[0] >= 3 and swaps(engine)[1:] == (0, 0)
    # Three full blocks and one with the first answer; the last token is always computed.
    assert ask(engine, TEXTS[0]) == 12
    rows = engine.fake.rows  # type: ignore[attr-defined]
    assert rows == 3 * (4 + GREEDY.max_tokens - 1) + 2 * 12
    out, back, tokens = swaps(engine)
    assert 3 <= out <= 8 and 2 <= back <= 3 and tokens == 4 * back
    metrics = engine.metrics()
    assert metrics["prefix_hit_tokens"] == 12 and metrics["kv_host_blocks"] == 16
    assert metrics["kv_host_blocks_used"] == out
    # Blocks that came back are in the cache of the device again.
    assert ask(engine, TEXTS[0]) == 12 and swaps(engine)[1] == back


def test_without_host_blocks(make_engine: Make) -> None:
    """What leaves the device is lost, and nothing moves."""
    engine = small(make_engine, host_blocks=0)
    assert [ask(engine, text) for text in (*TEXTS[:2], TEXTS[0])][2] < 12
    assert swaps(engine) == (0, 0, 0) and engine.metrics()["kv_host_blocks"] == 0


def test_a_block_is_copied_once(make_engine: Make) -> None:
    """The copy stays when its block is brought back, so that the block may leave again for nothing."""
    engine = small(make_engine)
    for _ in range(2):
        ask(engine, TEXTS[0])
        ask(engine, TEXTS[1])
    out = swaps(engine)[0]
    for _ in range(5):
        assert ask(engine, TEXTS[0]) == ask(engine, TEXTS[1]) == 12
    assert swaps(engine)[0] <= out + 2 and swaps(engine)[1] >= 20


def test_the_longest_unused_makes_room(make_engine: Make) -> None:
    """And of a text its end before its beginning, which more texts may share."""
    engine = small(make_engine, host_blocks=7)
    for text in TEXTS:
        ask(engine, text)
    assert engine.metrics()["kv_host_blocks_used"] == 7
    assert ask(engine, TEXTS[0]) == 0
    engine = small(make_engine, host_blocks=7)
    for text in TEXTS[:3]:
        ask(engine, text)
    assert 0 < ask(engine, TEXTS[0][:9]) <= 8


def test_several_answers_and_sharers(make_engine: Make) -> None:
    """Requests that come together each bring their own copy back, and one of them stays in the cache."""
    engine = make_engine(program={"blocks": 12, "host_blocks": 16})
    for text in TEXTS[:4]:
        ask(engine, text)
    params = SamplingParams(temperature=0.5, seed=1, n=2, max_tokens=3, ignore_eos=True)
    requests = [engine.submit(TEXTS[0], params) for _ in range(2)]
    for request in requests:
        for index, answer in enumerate(request.result().outputs):
            assert answer.token_ids == oracle(TEXTS[0], params, index, request.seed).token_ids
    assert swaps(engine)[1] >= 3
    assert engine.metrics()["kv_blocks_used"] == 0


def test_preempted_sequences_return(make_engine: Make) -> None:
    """Whoever was preempted goes on from host memory instead of computing everything again."""
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    rows = []
    for host_blocks in (0, 32):
        engine = make_engine(program={"blocks": 10, "host_blocks": host_blocks})
        requests = [engine.submit(text, params) for text in TEXTS[:4]]
        for request, text in zip(requests, TEXTS, strict=False):
            assert request.result().outputs[0].token_ids == oracle(text, params).token_ids
        assert engine.metrics()["preemptions"] > 0
        rows.append(engine.metrics()["computed_tokens"])
        assert (swaps(engine)[1] > 0) == (host_blocks > 0)
        assert swaps(engine)[2] == 0  # whoever comes back did not hit the cache
    assert rows[1] < rows[0]


def test_spans_return_as_a_whole(make_engine: Make) -> None:
    """A bidirectional span of which a block is lost is computed anew."""
    prompt = [*range(1, 13), 40]
    expected = oracle(prompt, GREEDY, span=10).token_ids
    for host_blocks, cached in ((16, 12), (2, 0)):
        engine = small(make_engine, host_blocks)
        for text in (None, TEXTS[0], TEXTS[1], None):
            if text is not None:
                ask(engine, text)
                continue
            output = engine.submit(prompt, GREEDY, span=10).result()
            assert output.outputs[0].token_ids == expected
        assert output.usage.cached_tokens == cached


def test_salts_stay_apart(make_engine: Make) -> None:
    """Host memory does not mix what the device keeps apart."""
    engine = small(make_engine)
    for salt in ("a", "b", "c", "a"):
        output = engine.submit(TEXTS[0], GREEDY, cache_salt=salt).result()
    assert output.usage.cached_tokens == 12
    assert engine.submit(TEXTS[0], GREEDY, cache_salt="d").result().usage.cached_tokens == 0


def test_cancelled_while_copies_are_in_flight(make_engine: Make) -> None:
    """Blocks that are being filled come free with their step; what they were filled from is still there."""
    for turns in range(4):
        engine = small(make_engine)
        for text in TEXTS[:2]:
            ask(engine, text)
        request = engine.submit(TEXTS[0], GREEDY)
        for _ in range(turns):
            engine.step()
        request.cancel()
        assert ask(engine, TEXTS[2]) == 0
        assert ask(engine, TEXTS[0]) == 12
        assert engine.metrics()["kv_blocks_used"] == 0


@pytest.mark.parametrize("how", ["failing", "refused"])
def test_a_copy_that_fails(make_engine: Make, how: str) -> None:
    """Wherever it happens: the step's requests fail, what it copied is forgotten, and later answers are right."""
    failures = swapped = 0
    for number in range(12):
        engine = small(make_engine, host_blocks=8, **({"failing": (number,)} if how == "failing" else {}))
        if how == "refused":
            engine.fake.refused = {number}  # type: ignore[attr-defined]
        for text in (TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[1], TEXTS[0]):
            try:
                ask(engine, text)
            except DeviceError:
                failures += 1
        ask(engine, TEXTS[0])
        assert ask(engine, TEXTS[0]) == 12
        assert not engine._core.kv.host._leaving, "copies of a step that is no more still wait for it"
        assert engine.metrics()["kv_blocks_used"] == 0 and engine.metrics()["failed"] <= 1
        swapped += swaps(engine)[1]
    assert failures >= 10 and swapped > 20


class Books:
    """HostBlocks beside what it must hold."""

    def __init__(self, blocks: int) -> None:
        self.dropped: list[int] = []
        self.host = HostBlocks(blocks, lambda entry: self.dropped.append(entry.number))
        self.entries = [Entry(number, ("", ())) for number in range(9)]

    def save(self, number: int) -> bool:
        return self.host.save(self.entries[number], number + 100)


def test_a_copy_is_not_there_before_its_step_is_done() -> None:
    """It can be neither found nor replaced until then."""
    books = Books(2)
    assert books.save(0) and books.save(1) and not books.save(2)
    assert books.host.begin_step(5) == [Swap(100, 0), Swap(101, 1)]
    assert not any(entry.can_be_read for entry in books.entries) and not books.save(2)
    books.host.step_done(5)
    assert [entry.can_be_read for entry in books.entries[:3]] == [True, True, False]
    assert books.save(2) and books.dropped == [0] and not books.entries[0].can_be_read
    assert books.host.begin_step(6) == [Swap(102, 0)]
    books.host.step_failed(6)
    books.host.step_done(6)
    assert books.dropped == [0, 2] and books.entries[2].host == -1 and books.host.used == 1


def test_what_a_step_reads_is_not_replaced_in_it() -> None:
    """Copies out come first: they would overwrite what the same step brings back."""
    books = Books(2)
    assert books.save(0) and books.save(1)
    books.host.begin_step(0)
    books.host.step_done(0)
    books.host.read(books.entries[:2])
    assert not books.save(2) and books.dropped == []
    books.host.begin_step(1)
    assert books.save(2) and books.dropped == [1], "the end of the text that was read makes room first"
