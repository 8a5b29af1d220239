"""What an answer consists of, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the `index`-th call: first its id and name, then its arguments, a JSON object as text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments_delta: str = ""


Delta = TextDelta | ReasoningDelta | ToolCallDelta


class OutputParser(Protocol):
    """Takes an answer in pieces. It never fails: what is no proper call is text."""

    def push(self, text: str) -> list[Delta]:
        """Take more of the answer; what is certain now."""
        ...

    def finish(self) -> list[Delta]:
        """The answer has ended; what was held back."""
        ...
