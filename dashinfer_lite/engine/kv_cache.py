"""The sequences' share of the KV pool."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dashinfer_lite.engine.blocks import BlockAllocator
from dashinfer_lite.engine.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from dashinfer_lite.engine.sequence import Sequence


class KvCache:
    """Gives blocks to sequences, finds cached prefixes, and keeps freed blocks until no step in flight writes them."""

    def __init__(self, blocks: int, block_tokens: int, prefix_cache: bool = True) -> None:
        self.block_tokens = block_tokens
        self.prefixes = PrefixCache(block_tokens)
        self.allocator = BlockAllocator(blocks, self.prefixes.forget)
        self.held = 0  # blocks that come free when steps in flight are done
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._enabled = prefix_cache
        self._held: deque[tuple[int, list[int]]] = deque()
        self._steps_done = -1

    @property
    def available(self) -> int:
        """Blocks that can be handed out now."""
        return self.allocator.free

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def attach_prefix(self, seq: Sequence) -> bool:
        """Start a sequence with the cached blocks of its tokens, if there is room for all the tokens known of it.

        Its last token is always computed, for its logits.
        """
        blocks: list[int] = []
        prefix = seq.salt
        if self._enabled:
            limit = min(len(seq.tokens) - 1, seq.prefix_limit)
            blocks, prefix = self.prefixes.match(seq.salt, seq.tokens, limit)
            if len(blocks) * self.block_tokens < seq.span:
                blocks, prefix = [], seq.salt  # a bidirectional span is shared as a whole or not at all
        unused = sum(self.allocator.users[block] == 0 for block in blocks)
        if self.blocks_for(seq.total) - len(blocks) > self.available - unused:
            return False
        for block in blocks:
            self.allocator.share(block)
        seq.blocks = blocks
        seq.prefix, seq.registered = prefix, len(blocks)
        seq.computed = len(blocks) * self.block_tokens
        return True

    def count_query(self, seq: Sequence) -> None:
        """Count a sequence's first look-up; those after a preemption are not hits that a user would recognize."""
        seq.cached_tokens = seq.computed
        self.queried_tokens += seq.prompt_len
        self.hit_tokens += seq.computed

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

    def step_done(self, number: int) -> None:
        """Note that a step is done; steps end in the order of their numbers."""
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

    def _free(self, blocks: list[int]) -> None:
        # The end of a text first: when room is needed, ends go before the beginnings that more texts share.
        for block in reversed(blocks):
            self.allocator.release(block, keep=block in self.prefixes)
