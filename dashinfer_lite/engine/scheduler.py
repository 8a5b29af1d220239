"""Who computes what in the next step."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashinfer_lite.engine.host_blocks import Swap
    from dashinfer_lite.engine.kv_cache import KvCache
    from dashinfer_lite.engine.sequence import Sequence

_order = attrgetter("order")


class Chunk:
    """The tokens [start, start + count) of a sequence in one step, with the blocks handed out for them.

    `swaps` bring back the blocks before `start` that are in host memory.
    """

    __slots__ = ("count", "draws", "epoch", "fresh", "seq", "start", "swaps")

    def __init__(self, seq: Sequence, count: int, fresh: list[int], swaps: list[Swap]) -> None:
        self.seq = seq
        self.start = seq.computed
        self.count = count
        self.fresh = fresh
        self.swaps = swaps
        self.draws = self.start + count == seq.total  # it has caught up, so its next token is drawn
        self.epoch = seq.epoch


class Scheduler:
    """Hands out a budget of tokens a step: to running sequences first, then to waiting ones by priority and arrival.

    Pure policy over numbers: no device, no arrays. When the KV pool is exhausted the last in order is preempted: its
    blocks are freed and it waits for its turn again, to be computed anew with the same result.
    """

    def __init__(self, kv: KvCache, max_tokens: int, max_seqs: int) -> None:
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []  # sorted by order
        self.preemptions = 0
        self._kv = kv
        self._max_tokens = max_tokens
        self._slots = list(range(min(max_seqs, max_tokens) - 1, -1, -1))
        self._budget = 0
        self._is_short = False  # a running sequence found too few blocks in this step
        self._refused: tuple[tuple[int, int, int], int] | None = None  # who found too few blocks, among how many
        self._is_starved = False  # the first to wait has an unsplittable span, and found too little budget left

    def add(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=_order)

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence that has ended; its blocks are freed."""
        if seq.slot >= 0:
            self._stop(seq)
        elif seq in self.waiting:  # the further answers to a prompt come in only when it has been computed
            self.waiting.remove(seq)

    def schedule(self) -> list[Chunk]:
        """Plan a step; the planned tokens count as computed, and drawn ones as pending, from now on."""
        self._budget = self._max_tokens
        self._is_short = False
        plan: dict[Sequence, Chunk] = {}
        if self._is_starved:
            self._admit(plan, most=1)
        for seq in self._in_turn():
            if seq.slot >= 0 and seq not in plan:  # neither preempted nor admitted just now
                self._continue(seq, plan)
        if self.waiting and not self._is_short:
            self._admit(plan, most=len(self.waiting))
        for chunk in plan.values():
            chunk.seq.computed += chunk.count
            chunk.seq.pending += chunk.draws
        return list(plan.values())

    def _in_turn(self) -> list[Sequence]:
        """Those that need one token first: a long prompt must not make others' answers stutter."""
        short: list[Sequence] = []
        long: list[Sequence] = []
        for seq in self.running:
            if seq.is_ready:
                (short if seq.total - seq.computed == 1 else long).append(seq)
        return short + long

    def _continue(self, seq: Sequence, plan: dict[Sequence, Chunk]) -> None:
        count = min(seq.total - seq.computed, self._budget)
        if count == 0:
            return
        blocks = self._kv.blocks_for(seq.computed + count) - len(seq.blocks)
        if blocks > 0 and not self._make_room(seq, blocks, plan):
            return
        self._plan(seq, count, max(blocks, 0), plan)

    def _admit(self, plan: dict[Sequence, Chunk], most: int) -> None:
        """Start waiting sequences, strictly in order: who does not fit holds up those behind."""
        self._is_starved = False
        for _ in range(most):
            if not self.waiting or not self._slots or not self._budget:
                return
            seq = self.waiting[0]
            if not seq.is_ready:  # preempted, and its last token is still on the way
                return
            if seq.span > self._budget:
                self._is_starved = True
                return
            if self._refused == (seq.order, self._kv.available):
                return
            # Room for all that is known of it, lest it be preempted before it gets anywhere.
            swaps = self._kv.attach_prefix(seq)
            if swaps is None:
                self._refused = (seq.order, self._kv.available)
                return
            if not seq.started:
                seq.started = True
                self._kv.count_query(seq, len(swaps))
            del self.waiting[0]
            seq.slot = self._slots.pop()
            insort(self.running, seq, key=_order)
            count = min(seq.total - seq.computed, self._budget)
            self._plan(seq, count, self._kv.blocks_for(seq.computed + count) - len(seq.blocks), plan, swaps)

    def _plan(
        self, seq: Sequence, count: int, blocks: int, plan: dict[Sequence, Chunk], swaps: list[Swap] | None = None
    ) -> None:
        self._budget -= count
        plan[seq] = Chunk(seq, count, self._kv.extend(seq, blocks) if blocks else [], swaps or [])

    def _make_room(self, seq: Sequence, blocks: int, plan: dict[Sequence, Chunk]) -> bool:
        """Preempt from the last in order until so many blocks are available; False: `seq` cannot go on in this step."""
        kv = self._kv
        if kv.available >= blocks:
            return True
        self._is_short = True
        while kv.available < blocks:
            if kv.available + kv.held >= blocks:  # comes free when a step in flight is done
                return False
            victim = self.running[-1]
            if victim in plan:
                self._budget += plan.pop(victim).count
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.preemptions += 1
        self._stop(seq)
        seq.epoch += 1
        seq.computed = 0
        self.add(seq)

    def _stop(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._slots.append(seq.slot)
        seq.slot = -1
        self._kv.release(seq)
