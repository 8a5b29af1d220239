"""Which full blocks hold which tokens after which prefix."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

# What stands before a block: the salt for a sequence's first block, the preceding block's entry number for others.
Prefix = Hashable


class Entry:
    """A full block of a text, and where its keys and values are: on the device, in host memory, or in both."""

    __slots__ = ("block", "host", "is_saved", "key", "number")

    def __init__(self, number: int, key: tuple[Prefix, tuple[int, ...]]) -> None:
        self.number = number  # never used again: it stands for the whole text up to the block's end
        self.key = key
        self.block = -1  # on the device; -1: not there
        self.host = -1  # the host block that is its own; -1: none
        self.is_saved = False  # whether the copy there is complete

    @property
    def can_be_read(self) -> bool:
        return self.block >= 0 or self.is_saved


class PrefixCache:
    """A hash chain over full blocks.

    An entry's key is its prefix and its own token ids, and the dict compares both on a hit, so equal hashes can never
    mix up two texts.

    The salt tells apart what must not be shared although its tokens are equal: adapters, media, users' salts.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._entries: dict[tuple[Prefix, tuple[int, ...]], Entry] = {}
        self._of_block: dict[int, Entry] = {}
        self._numbered = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, block: int) -> bool:
        return block in self._of_block

    def match(self, salt: Prefix, tokens: Sequence[int], limit: int) -> list[Entry]:
        """The entries of the longest cached prefix of at most `limit` tokens."""
        size = self._block_tokens
        found: list[Entry] = []
        prefix = salt
        for start in range(0, limit - size + 1, size):
            entry = self._entries.get((prefix, tuple(tokens[start : start + size])))
            if entry is None or not entry.can_be_read:
                break
            prefix = entry.number
            found.append(entry)
        return found

    def insert(self, prefix: Prefix, tokens: Sequence[int], block: int) -> Prefix:
        """Enter a full block and return the prefix of the next one; a text that is there already keeps its block."""
        key = (prefix, tuple(tokens))
        entry = self._entries.get(key)
        if entry is None:
            self._numbered += 1
            entry = self._entries[key] = Entry(self._numbered, key)
        if entry.block < 0:
            entry.block = block
            self._of_block[block] = entry
        return entry.number

    def evict(self, block: int) -> Entry:
        """Take an entry off a block that is about to be overwritten."""
        entry = self._of_block.pop(block)
        entry.block = -1
        return entry

    def forget(self, entry: Entry) -> None:
        """Drop an entry that is nowhere any more."""
        del self._entries[entry.key]
