"""The sequences' share of the KV pool."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dashinfer_lite.engine.blocks import BlockAllocator
from dashinfer_lite.engine.host_blocks import HostBlocks, Swap
from dashinfer_lite.engine.prefix_cache import Entry, PrefixCache

if TYPE_CHECKING:
    from dashinfer_lite.engine.prefix_cache import Prefix
    from dashinfer_lite.engine.sequence import Sequence


class KvCache:
    """Gives blocks to sequences, finds cached prefixes, and keeps freed blocks until no step in flight writes them.

    Cached blocks that are overwritten go to host blocks first, where the device has any, and come back when their
    text is asked for again.
    """

    def __init__(self, blocks: int, block_tokens: int, prefix_cache: bool = True, host_blocks: int = 0) -> None:
        self.block_tokens = block_tokens
        self.prefixes = PrefixCache(block_tokens)
        self.allocator = BlockAllocator(blocks, self._evict)
        self.host = HostBlocks(host_blocks, self._forget_unless_somewhere)
        self.held = 0  # blocks that come free when steps in flight are done
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.host_hit_tokens = 0
        self._enabled = prefix_cache
        self._held: deque[tuple[int, list[int]]] = deque()
        self._steps_done = -1

    @property
    def available(self) -> int:
        """Blocks that can be handed out now."""
        return self.allocator.free

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def attach_prefix(self, seq: Sequence) -> list[Swap] | None:
        """Start a sequence with the cached blocks of its tokens, if there is room for all the tokens known of it.

        Returns what its first step must bring back from host memory, None where there is no room. The last token is
        always computed, for its logits.
        """
        found = self._cached(seq)
        there = [entry.block for entry in found if entry.block >= 0]
        unused = sum(self.allocator.users[block] == 0 for block in there)
        if self.blocks_for(seq.total) - len(there) > self.available - unused:
            return None
        for block in there:
            self.allocator.share(block)
        swaps = self._bring_back(found, after=there[-1] if there else -1) if len(there) < len(found) else []
        fetched = {host: block for block, host in swaps}
        seq.blocks = [entry.block if entry.block >= 0 else fetched[entry.host] for entry in found]
        # Blocks that come back enter the prefix cache like computed ones, when their step is done.
        seq.registered = next((at for at, entry in enumerate(found) if entry.block < 0), len(found))
        seq.prefix = _prefix_after(found[: seq.registered], seq.salt)
        seq.computed = len(found) * self.block_tokens
        return swaps

    def count_query(self, seq: Sequence, fetched: int) -> None:
        """Count a sequence's first look-up, with `fetched` blocks from host memory.

        Those after a preemption are not hits that a user would recognize.
        """
        seq.cached_tokens = seq.computed
        self.queried_tokens += seq.prompt_len
        self.hit_tokens += seq.computed
        self.host_hit_tokens += fetched * self.block_tokens

    def extend(self, seq: Sequence, count: int) -> list[int]:
        """Give a sequence `count` more blocks, no more than `available`, and return them."""
        fresh = self.allocator.allocate(count, after=seq.blocks[-1] if seq.blocks else -1)
        seq.blocks += fresh
        return fresh

    def register(self, seq: Sequence, written: int) -> None:
        """Enter the full blocks among a sequence's first `written` tokens into the prefix cache."""
        if not self._enabled:
            return
        size = self.block_tokens
        full = min(written, len(seq.tokens)) // size
        while seq.registered < full:
            start = seq.registered * size
            block = seq.blocks[seq.registered]
            seq.prefix = self.prefixes.insert(seq.prefix, seq.tokens[start : start + size], block)
            seq.registered += 1

    def release(self, seq: Sequence) -> None:
        """Take a sequence's blocks; those that a step in flight may write come free when it is done."""
        blocks, seq.blocks = seq.blocks, []
        seq.registered, seq.prefix = 0, seq.salt
        if seq.last_step > self._steps_done:
            self.held += len(blocks)
            self._held.append((seq.last_step, blocks))
        else:
            self._free(blocks)

    def begin_step(self, number: int) -> list[Swap]:
        """The copies to host memory that a step makes before it overwrites their blocks."""
        return self.host.begin_step(number) if self.host.blocks else []

    def step_done(self, number: int) -> None:
        """Note that a step is done; steps end in the order of their numbers."""
        if self.host.blocks:
            self.host.step_done(number)
        self._steps_done = number
        if not self._held:
            return
        waiting: deque[tuple[int, list[int]]] = deque()
        for last_step, blocks in self._held:
            if last_step <= number:
                self.held -= len(blocks)
                self._free(blocks)
            else:
                waiting.append((last_step, blocks))
        self._held = waiting

    def step_failed(self, number: int) -> None:
        """Note that what a step copied is lost. One that was submitted is also done."""
        self.host.step_failed(number)

    def _cached(self, seq: Sequence) -> list[Entry]:
        """The entries that a sequence begins with."""
        if not self._enabled:
            return []
        limit = min(len(seq.tokens) - 1, seq.prefix_limit)
        found = self.prefixes.match(seq.salt, seq.tokens, limit)
        # A bidirectional span is shared as a whole or not at all.
        return found if len(found) * self.block_tokens >= seq.span else []

    def _bring_back(self, found: list[Entry], after: int) -> list[Swap]:
        """Give blocks to those of the entries that are in host memory alone."""
        away = [entry for entry in found if entry.block < 0]
        self.host.read(away)  # before blocks are taken, whose owners may want host blocks
        blocks = self.allocator.allocate(len(away), after)
        return [Swap(block, entry.host) for block, entry in zip(blocks, away, strict=True)]

    def _evict(self, block: int) -> None:
        """Let a cached block be overwritten, after it has been copied to host memory if it is not there yet."""
        entry = self.prefixes.evict(block)
        if entry.host < 0 and not self.host.save(entry, block):
            self.prefixes.forget(entry)

    def _forget_unless_somewhere(self, entry: Entry) -> None:
        if entry.block < 0:
            self.prefixes.forget(entry)

    def _free(self, blocks: list[int]) -> None:
        # The end of a text first: when room is needed, ends go before the beginnings that more texts share.
        for block in reversed(blocks):
            self.allocator.release(block, keep=block in self.prefixes)


def _prefix_after(entries: list[Entry], salt: Prefix) -> Prefix:
    return entries[-1].number if entries else salt
