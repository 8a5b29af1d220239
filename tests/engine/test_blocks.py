"""The block allocator and the prefix cache, against plain models of what they promise."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dashinfer_lite.engine.blocks import BlockAllocator
from dashinfer_lite.engine.prefix_cache import Prefix, PrefixCache


class AllocatorMachine(RuleBasedStateMachine):
    """The allocator against a list of clean blocks, a list of kept ones in the order of their release, and counts."""

    @initialize(blocks=st.integers(1, 12))
    def make(self, blocks: int) -> None:
        self.evicted: list[int] = []
        self.blocks = BlockAllocator(blocks, self.evicted.append)
        self.users = [0] * blocks
        self.kept: list[int] = []

    @rule(count=st.integers(1, 4), after=st.integers(-1, 12))
    def allocate(self, count: int, after: int) -> None:
        count = min(count, self.blocks.free)
        clean = sum(n == 0 for n in self.users) - len(self.kept)
        self.evicted.clear()
        given_out = self.blocks.allocate(count, min(after, len(self.users) - 1))
        assert len(set(given_out)) == count
        assert self.evicted == self.kept[: max(0, count - clean)], "kept blocks go last, the longest unused first"
        self.kept = self.kept[len(self.evicted) :]
        for block in given_out:
            assert self.users[block] == 0 and block not in self.kept
            self.users[block] = 1

    @precondition(lambda self: any(self.users) or self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([b for b, n in enumerate(self.users) if n or b in self.kept]))
        self.blocks.share(block)
        self.users[block] += 1
        if block in self.kept:
            self.kept.remove(block)

    @precondition(lambda self: any(self.users))
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        block = data.draw(st.sampled_from([b for b, n in enumerate(self.users) if n]))
        self.blocks.release(block, keep)
        self.users[block] -= 1
        if keep and self.users[block] == 0:
            self.kept.append(block)

    @invariant()
    def counts_agree(self) -> None:
        assert self.blocks.users == self.users
        assert self.blocks.kept == len(self.kept)
        assert self.blocks.used == sum(n > 0 for n in self.users)
        assert self.blocks.used + self.blocks.clean + self.blocks.kept == len(self.users)


TestAllocator = AllocatorMachine.TestCase


def test_blocks_come_in_ascending_runs() -> None:
    """Fresh blocks ascend, and a sequence that grows continues its run although others were given out since."""
    blocks = BlockAllocator(16, lambda _: None)
    first = blocks.allocate(3)
    assert first == [0, 1, 2]
    assert blocks.allocate(1, after=9) == [10]
    assert blocks.allocate(2, after=2) == [3, 4]
    assert blocks.allocate(2, after=10) == [11, 12]
    for block in reversed(first):
        blocks.release(block, keep=False)
    assert blocks.allocate(3) == first


def test_equal_hashes_do_not_mix_texts() -> None:
    """hash(-1) == hash(-2) in CPython: two blocks with equal hashes, of which one is cached."""
    assert hash((-1, 5)) == hash((-2, 5))
    cache = PrefixCache(2)
    cache.insert("salt", [-1, 5], block=7)
    assert cache.match("salt", [-2, 5, 1], limit=3) == []
    assert [entry.block for entry in cache.match("salt", [-1, 5, 1], limit=3)] == [7]
    assert cache.match("other", [-1, 5, 1], limit=3) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=12), st.data())
def test_matches_are_true_prefixes(texts: list[list[int]], data: st.DataObject) -> None:
    """After any insertions and evictions, a match holds exactly the text that was asked for."""
    cache = PrefixCache(2)
    contents: dict[int, tuple[int, ...]] = {}  # block -> everything up to its end
    for text in texts:
        found = cache.match("salt", text, len(text))
        assert [contents[entry.block] for entry in found] == [tuple(text[: 2 * i + 2]) for i in range(len(found))]
        prefix: Prefix = found[-1].number if found else "salt"
        for start in range(2 * len(found), len(text) - 1, 2):
            block = len(contents)
            contents[block] = tuple(text[: start + 2])
            prefix = cache.insert(prefix, text[start : start + 2], block)
            assert block in cache
        if data.draw(st.booleans()) and any(block in cache for block in contents):
            cache.forget(cache.evict(data.draw(st.sampled_from([block for block in contents if block in cache]))))
