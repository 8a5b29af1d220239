"""Byte-pair encoding by ranks, as tiktoken defines it."""

from collections.abc import Mapping
from functools import lru_cache
from heapq import heapify, heappop, heappush

CACHED_WORDS = 1 << 15
"""Words whose tokens are remembered; a text repeats most of its words."""

CACHED_LENGTH = 64
"""Longest word in bytes that is remembered."""


class RankBPE:
    """Merges the adjacent pair whose joined bytes have the lowest rank, the leftmost of equal ones, while there is one.

    Different from a list of merges: whatever two parts join to a token may do so, however that token came about.
    """

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        """Take token → rank; every single byte must have one, and no two tokens the same."""
        self._ranks = ranks
        self._longest = max(map(len, ranks))
        self._remembered = lru_cache(CACHED_WORDS)(self._merge)

    def encode(self, word: bytes) -> tuple[int, ...]:
        """Return the ranks of a word's tokens, in time n log n; a word that is a token itself is that one."""
        rank = self._ranks.get(word)
        if rank is not None:
            return (rank,)
        return self._remembered(word) if len(word) <= CACHED_LENGTH else self._merge(word)

    def _merge(self, word: bytes) -> tuple[int, ...]:
        # A part starts at i and ends at stop[i], where the next one starts; stop[i] is 0 where no part starts.
        size = len(word)
        stop = [*range(1, size + 1), 0]
        before = list(range(-1, size))
        # A pair is one integer, rank · size + start: lowest rank first, then leftmost. As a rank stands for its bytes,
        # an entry is still good if the pair that starts there has that rank.
        queue = [key for start in range(size - 1) if (key := self._key(word, start, start + 2)) >= 0]
        heapify(queue)
        while queue:
            key = heappop(queue)
            start = key % size
            middle = stop[start]
            end = stop[middle]
            if not middle or not end or self._key(word, start, end) != key:
                continue
            stop[start], stop[middle] = end, 0
            before[end] = start
            if stop[end] and (after := self._key(word, start, stop[end])) >= 0:
                heappush(queue, after)
            if (previous := before[start]) >= 0 and (ahead := self._key(word, previous, end)) >= 0:
                heappush(queue, ahead)
        ids, start = [], 0
        while start < size:
            ids.append(self._ranks[word[start : stop[start]]])
            start = stop[start]
        return tuple(ids)

    def _key(self, word: bytes, start: int, end: int) -> int:
        """Return the queue entry of the pair that spans start … end, or -1 if its bytes are no token."""
        if end - start > self._longest:
            return -1
        rank = self._ranks.get(word[start:end])
        return -1 if rank is None else rank * len(word) + start
