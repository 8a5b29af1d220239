"""How many tokens an answer's thoughts have, known at any time of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from dashinfer_lite.tools import Delta, ReasoningDelta

PART: Final = 128  # about the characters that are encoded at once


class ThoughtTokens:
    """Counts while the thoughts come; what they cost grows with their length, however often the count is asked for.

    They are encoded in parts that end before a blank where there is one. Where a part ends depends on the text alone,
    so a stream's count is that of the whole answer: about the right one, since a token may reach over such an end.
    """

    def __init__(self, encode: Callable[[str, bool], Sequence[int]]) -> None:
        self._encode = encode
        self._counted = 0
        self._pending = ""
        self._pending_count: int | None = 0  # None: something came since it was counted

    def add(self, pieces: Iterable[Delta]) -> None:
        """Take the thoughts among more pieces of the answer."""
        text = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta))
        if not text:
            return
        self._pending += text
        self._pending_count = None
        start = 0
        while len(self._pending) - start > 2 * PART:
            end = self._pending.rfind(" ", start + 1, start + PART)
            end = end if end >= 0 else start + PART
            self._counted += len(self._encode(self._pending[start:end], False))
            start = end
        self._pending = self._pending[start:]

    def total(self) -> int:
        """The tokens so far."""
        if self._pending_count is None:
            self._pending_count = len(self._encode(self._pending, False))
        return self._counted + self._pending_count
