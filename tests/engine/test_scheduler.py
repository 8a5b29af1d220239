"""The scheduler's policy, on sequences that nobody computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dashinfer_lite.engine.kv_cache import KvCache
from dashinfer_lite.engine.scheduler import Scheduler
from dashinfer_lite.engine.sequence import Sequence


def sequence(number: int, tokens: int, priority: int = 0, needs_host: bool = False, span: int = 0) -> Sequence:
    request: Any = SimpleNamespace(prompt_token_ids=[number] * tokens)
    draw: Any = SimpleNamespace(needs_host=needs_host, scores_prompt=False)
    return Sequence(request, SimpleNamespace(), draw, (priority, number, 0), 1000, "salt", span)  # type: ignore[arg-type]


def scheduler(blocks: int, max_tokens: int = 16, max_seqs: int = 8) -> Scheduler:
    return Scheduler(KvCache(blocks, 4), max_tokens, max_seqs)


def step(it: Scheduler, number: int = 0, answers: bool = True) -> list[tuple[int, int, int]]:
    """Plan one step, with its drawn tokens known at once: (sequence, start, count) for each chunk."""
    plan = it.schedule()
    for chunk in plan:
        chunk.seq.last_step = number
        if chunk.draws and answers:
            chunk.seq.pending -= 1
            chunk.seq.tokens.append(0)
    if answers:
        it._kv.step_done(number)
    return [(chunk.seq.order[1], chunk.start, chunk.count) for chunk in plan]


def test_one_budget_for_all() -> None:
    """Long prompts come in chunks; what is left of the budget goes to those behind."""
    it = scheduler(64)
    it.add(sequence(1, 20))
    it.add(sequence(2, 6))
    it.add(sequence(3, 30))
    assert step(it) == [(1, 0, 16)]
    assert step(it) == [(1, 16, 4), (2, 0, 6), (3, 0, 6)]
    assert step(it) == [(1, 20, 1), (2, 6, 1), (3, 6, 14)]
    assert step(it) == [(1, 21, 1), (2, 7, 1), (3, 20, 10)]


def test_order_is_priority_then_arrival() -> None:
    it = scheduler(64, max_seqs=2)
    for number, priority in ((1, 1), (2, 0), (3, 1), (4, -1)):
        it.add(sequence(number, 2, priority))
    assert step(it) == [(4, 0, 2), (2, 0, 2)]
    it.remove(it.running[0])
    assert step(it) == [(2, 2, 1), (1, 0, 2)]


def test_who_does_not_fit_holds_up_those_behind() -> None:
    it = scheduler(4)
    it.add(sequence(1, 8))
    it.add(sequence(2, 12))
    it.add(sequence(3, 1))
    assert step(it) == [(1, 0, 8)]
    assert step(it) == [(1, 8, 1)]


def test_the_youngest_gives_way() -> None:
    """Out of blocks: the last in order is preempted and nobody starts; it comes back when there is room for it."""
    it = scheduler(4)
    for number in (1, 2):
        it.add(sequence(number, 7))
    step(it)
    it.add(sequence(3, 1))
    assert step(it) == [(1, 7, 1), (2, 7, 1)]
    assert step(it) == [(1, 8, 1)]
    assert [seq.order[1] for seq in it.waiting] == [2, 3]
    assert it.preemptions == 1
    assert step(it) == [(1, 9, 1)]
    it.remove(it.running[0])
    assert step(it) == [(2, 0, 9), (3, 0, 1)]


def test_a_planned_chunk_is_taken_back() -> None:
    """The victim may have been planned already: its budget goes to others."""
    it = scheduler(4, max_tokens=8)
    it.add(sequence(2, 3))
    step(it)
    it.add(sequence(1, 11, priority=-1))
    assert step(it) == [(2, 3, 1), (1, 0, 7)]
    assert step(it) == [(1, 7, 4)]
    assert (it.preemptions, it.waiting[0].order[1], it.waiting[0].computed) == (1, 2, 0)
    assert it._kv.allocator.used == 3


def test_blocks_in_flight_are_waited_for() -> None:
    """Blocks that come free with a step in flight are no reason to preempt one more."""
    it = scheduler(6, max_tokens=32)
    for number in (1, 2, 3):
        it.add(sequence(number, 8))
    assert step(it, 0, answers=False) == [(1, 0, 8), (2, 0, 8), (3, 0, 8)]
    assert step(it, 1, answers=False) == []  # 3 has given way, but its blocks are still written
    assert (it.preemptions, it._kv.held, it._kv.available) == (1, 2, 0)
    it._kv.step_done(0)
    assert step(it, 2, answers=False) == [(1, 8, 1), (2, 8, 1)]


def test_nobody_starts_while_another_is_short() -> None:
    """What is left of the pool belongs to the running sequence that found too little of it."""
    it = scheduler(6, max_tokens=8)
    it.add(sequence(1, 16))
    assert step(it) == [(1, 0, 8)]
    ended = sequence(9, 12)
    it._kv.extend(ended, 3)
    ended.last_step = 5
    it._kv.release(ended)
    it.add(sequence(2, 1))
    assert it._kv.available == 1
    assert step(it, answers=False) == []
    it._kv.step_done(5)
    assert step(it) == [(1, 8, 8)]
    assert step(it) == [(1, 16, 1), (2, 0, 1)]


def test_preempted_ones_wait_for_their_tokens() -> None:
    """A sequence that was preempted while its next token was on the way cannot start before it is known."""
    it = scheduler(64)
    seq = sequence(1, 5)
    it.add(seq)
    step(it, 0, answers=False)
    it._preempt(seq)
    it._kv.step_done(0)
    assert step(it, 1) == []
    seq.pending = 0
    seq.tokens.append(7)
    assert step(it, 2) == [(1, 0, 6)]


def test_running_ahead() -> None:
    """Without the result of the last step a sequence goes on by one token, unless the host must see it first."""
    it = scheduler(64)
    it.add(sequence(1, 3))
    it.add(sequence(2, 3, needs_host=True))
    assert step(it, 0, answers=False) == [(1, 0, 3), (2, 0, 3)]
    assert step(it, 1, answers=False) == [(1, 3, 1)]
    assert step(it, 2, answers=False) == [(1, 4, 1)]


def test_span_without_room_goes_first_next_time() -> None:
    it = scheduler(64)
    for number in (1, 2):
        it.add(sequence(number, 3))
    step(it)
    it.add(sequence(3, 16, span=16))
    assert step(it) == [(1, 3, 1), (2, 3, 1)]
    assert step(it) == [(3, 0, 16)]
    assert step(it) == [(1, 4, 1), (2, 4, 1), (3, 16, 1)]


def test_ends_of_texts_are_forgotten_first() -> None:
    """Of the cached blocks of a text, the last is the first to be overwritten."""
    kv = KvCache(4, 4)
    seq = sequence(1, 16)
    kv.attach_prefix(seq)
    blocks = kv.extend(seq, 4)
    kv.register(seq, 16)
    kv.release(seq)
    assert kv.allocator.allocate(2) == [blocks[3], blocks[2]]
    assert [block in kv.prefixes for block in blocks] == [True, True, False, False]
