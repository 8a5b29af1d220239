"""Which blocks of the KV pool are in use, and by how many."""

from __future__ import annotations

from collections.abc import Callable


class BlockAllocator:
    """Reference counts and two free lists over the block ids 0 … blocks - 1, of which there is at least one.

    A block without users is either *clean* (its content is worthless) or *kept* (its content may be asked for again).
    Clean blocks are handed out first, then kept ones, the longest unused first; `evicted(block)` is called for those.

    Both lists are doubly linked and live in two int arrays: a kept block that is asked for again is taken out of the
    middle of its list, and a run of ascending blocks is continued, both in constant time.
    """

    def __init__(self, blocks: int, evicted: Callable[[int], None]) -> None:
        self.blocks = blocks
        self.users = [0] * blocks
        self.kept = 0
        self.clean = blocks
        self._evicted = evicted
        self._is_kept = bytearray(blocks)
        # Behind the blocks stand the two lists' heads; a list is a ring through its head.
        self._clean_head, self._kept_head = blocks, blocks + 1
        self._next = [*range(1, blocks), self._clean_head, 0, self._kept_head]
        self._previous = [self._clean_head, *range(blocks - 1), blocks - 1, self._kept_head]

    @property
    def free(self) -> int:
        """Blocks that `allocate` can hand out."""
        return self.clean + self.kept

    @property
    def used(self) -> int:
        return self.blocks - self.clean - self.kept

    def allocate(self, count: int, after: int = -1) -> list[int]:
        """Hand out `count` blocks, no more than `free`, of one user each; ascending from `after` if cheap."""
        return [after := self._take(after) for _ in range(count)]

    def share(self, block: int) -> None:
        """Add a user to a block that is in use or kept."""
        if self.users[block] == 0:
            self._unlink(block)
            self._is_kept[block] = 0
            self.kept -= 1
        self.users[block] += 1

    def release(self, block: int, keep: bool) -> None:
        """Take a user away; the last one leaves the block kept, or clean."""
        self.users[block] -= 1
        if self.users[block]:
            return
        if keep:
            self._is_kept[block] = 1
            self.kept += 1
            self._link(block, before=self._kept_head)
        else:
            self.clean += 1
            self._link(block, before=self._next[self._clean_head])

    def _take(self, previous: int) -> int:
        block = previous + 1
        if not (0 < block < self.blocks and self.users[block] == 0 and not self._is_kept[block]):
            block = self._next[self._clean_head if self.clean else self._kept_head]
        self._unlink(block)
        if self._is_kept[block]:
            self._is_kept[block] = 0
            self.kept -= 1
            self._evicted(block)
        else:
            self.clean -= 1
        self.users[block] = 1
        return block

    def _link(self, block: int, before: int) -> None:
        previous = self._previous[before]
        self._next[previous] = self._previous[before] = block
        self._previous[block], self._next[block] = previous, before

    def _unlink(self, block: int) -> None:
        previous, following = self._previous[block], self._next[block]
        self._next[previous], self._previous[following] = following, previous
