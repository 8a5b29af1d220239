"""What a model thinks before it answers, between <think> and </think>."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashinfer_lite.tools.deltas import ReasoningDelta
from dashinfer_lite.tools.scan import Blanks, Expected, Marker

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashinfer_lite.tools.deltas import Delta, OutputParser

OPEN: Final = "<think>"
CLOSE: Final = "</think>"


class ReasoningParser:
    """Takes thoughts from the beginning of an answer, and hands the rest on. Blanks around both are dropped."""

    def __init__(self, inner: OutputParser, is_open: bool) -> None:
        """`is_open`: the prompt has ended inside of the thoughts."""
        self._inner = inner
        self._opening = Expected(OPEN)
        self._closing = Marker(CLOSE)
        self._held: list[str] = []
        self._thoughts = Blanks(drops_leading=True)
        self._deltas: list[Delta] = []
        self._state: Callable[[str], str] = self._thinking if is_open else self._start

    def push(self, text: str) -> list[Delta]:
        """Take more of the answer; what is certain now."""
        while text:
            text = self._state(text)
        return self._taken()

    def finish(self) -> list[Delta]:
        """The answer has ended; what was held back."""
        if self._state == self._thinking:
            self._think(self._closing.flush())
        self._deltas += self._inner.push("".join(self._held))
        self._deltas += self._inner.finish()
        return self._taken()

    def _start(self, text: str) -> str:
        used, is_word = self._opening.feed(text)
        self._held.append(text[:used])
        if is_word:
            self._held.clear()
            self._state = self._thinking
        elif is_word is False:
            self._deltas += self._inner.push("".join(self._held))
            self._held.clear()
            self._state = self._hand_on
        return text[used:]

    def _thinking(self, text: str) -> str:
        thoughts, rest = self._closing.find(text)
        self._think(thoughts)
        if rest is None:
            return ""
        self._state = self._skip_blanks
        return rest

    def _skip_blanks(self, text: str) -> str:
        text = text.lstrip()
        if text:
            self._state = self._hand_on
        return text

    def _hand_on(self, text: str) -> str:
        self._deltas += self._inner.push(text)
        return ""

    def _think(self, text: str) -> None:
        text = self._thoughts.push(text)
        if text:
            self._deltas.append(ReasoningDelta(text))

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas
