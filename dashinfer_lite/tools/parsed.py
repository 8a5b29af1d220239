"""An answer as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashinfer_lite.tools.deltas import ReasoningDelta, TextDelta

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dashinfer_lite.tools.deltas import Delta, OutputParser


@dataclass(slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """The parts of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        """Join more pieces."""
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self.text += delta.text
            elif isinstance(delta, ReasoningDelta):
                self.reasoning += delta.text
            else:
                if delta.index == len(self.calls):
                    self.calls.append(ToolCall(delta.id or "", delta.name or ""))
                self.calls[delta.index].arguments += delta.arguments_delta


def parse(parser: OutputParser, text: str) -> Parsed:
    """Take a whole answer apart with a fresh parser."""
    parsed = Parsed()
    parsed.add(parser.push(text))
    parsed.add(parser.finish())
    return parsed
