"""Which full blocks hold which tokens after which prefix."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

# What stands before a block: the salt for a sequence's first block, the preceding block's entry number for others.
Prefix = Hashable


class PrefixCache:
    """A hash chain over full blocks.

    An entry's key is its prefix and its own token ids, and the dict compares both on a hit, so equal hashes can never
    mix up two texts. Entries are numbered and a number is never used again: the number of a block's entry stands for
    the whole text up to the block's end.

    The salt tells apart what must not be shared although its tokens are equal: adapters, media, users' salts.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._entries: dict[tuple[Prefix, tuple[int, ...]], tuple[int, int]] = {}  # -> (number, block)
        self._keys: dict[int, tuple[Prefix, tuple[int, ...]]] = {}  # block -> its entry's key
        self._numbered = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def match(self, salt: Prefix, tokens: Sequence[int], limit: int) -> tuple[list[int], Prefix]:
        """Return the blocks of the longest cached prefix of at most `limit` tokens, and what follows them as prefix."""
        size = self._block_tokens
        blocks: list[int] = []
        prefix = salt
        for start in range(0, limit - size + 1, size):
            entry = self._entries.get((prefix, tuple(tokens[start : start + size])))
            if entry is None:
                break
            prefix = entry[0]
            blocks.append(entry[1])
        return blocks, prefix

    def insert(self, prefix: Prefix, tokens: Sequence[int], block: int) -> Prefix:
        """Enter a full block and return the prefix of the next one; a text that is already there keeps its block."""
        key = (prefix, tuple(tokens))
        entry = self._entries.get(key)
        if entry is None:
            self._numbered += 1
            entry = (self._numbered, block)
            self._entries[key] = entry
            self._keys[block] = key
        return entry[0]

    def forget(self, block: int) -> None:
        """Drop the entry of a block that is about to be overwritten."""
        del self._entries[self._keys.pop(block)]
