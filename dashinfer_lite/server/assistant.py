"""One answer's message while it is put together from text: its reasoning, its text, its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from dashinfer_lite.server.protocol.chat import CalledFunction, ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.server.protocol.chat import FinishReason


class Piece(NamedTuple):
    """Something new in a message.

    A piece of kind "call" belongs to the `call`-th call; its first one has `id` and `name`, `text` are more arguments.
    """

    kind: Literal["text", "reasoning", "call"]
    text: str
    call: int = 0
    id: str = ""
    name: str | None = None


class Parser(Protocol):
    """Takes an answer's text apart while it comes."""

    def push(self, text: str) -> Sequence[Piece]: ...

    def finish(self) -> Sequence[Piece]: ...


class PlainText:
    """The parser of a model that neither reasons aloud nor calls: all of it is text."""

    def push(self, text: str) -> Sequence[Piece]:
        return [Piece("text", text)] if text else []

    def finish(self) -> Sequence[Piece]:
        return []


class Assistant:
    """A message in the making."""

    def __init__(self, parser: Parser) -> None:
        self.text = self.reasoning = ""
        self.calls: list[ToolCall] = []
        self._parser = parser

    def push(self, text: str) -> list[Piece]:
        """Take more of the answer's text and return what it adds to the message."""
        return self._add(self._parser.push(text))

    def finish(self) -> list[Piece]:
        """The answer has ended: return what was held back."""
        return self._add(self._parser.finish())

    def finish_reason(self, reason: str | None) -> FinishReason:
        """How the message ended, given how the answer's text did."""
        if reason == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"

    def _add(self, pieces: Sequence[Piece]) -> list[Piece]:
        for piece in pieces:
            if piece.kind == "text":
                self.text += piece.text
            elif piece.kind == "reasoning":
                self.reasoning += piece.text
            else:
                if piece.name is not None:
                    self.calls.append(ToolCall(id=piece.id, function=CalledFunction(name=piece.name)))
                self.calls[piece.call].function.arguments += piece.text
        return list(pieces)
