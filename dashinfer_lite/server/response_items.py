"""A response's items while an answer comes: thoughts, messages and calls, one after the other, with their events."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dashinfer_lite.server.protocol.responses import (
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    Progress,
    ReasoningText,
)
from dashinfer_lite.tools import ReasoningDelta, TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from dashinfer_lite.server.protocol.chat import TokenLogprob

# The fields of an event, its type among them.
Fields = dict[str, Any]


class ResponseItems:
    """The items so far; the last one may be open. Every method gives the events of what it changes."""

    def __init__(self) -> None:
        self.done: list[OutputItem] = []
        self._open: OutputItem | None = None

    def push(
        self, pieces: Iterable[TextDelta | ReasoningDelta | ToolCallDelta], logprobs: list[TokenLogprob]
    ) -> Iterator[Fields]:
        """Take what is new in the answer; the log probabilities go with its first piece of text."""
        for piece in pieces:
            if isinstance(piece, TextDelta):
                yield from self._text(piece.text, logprobs)
                logprobs = []
            elif isinstance(piece, ReasoningDelta):
                yield from self._reasoning(piece.text)
            else:
                yield from self._call(piece)

    def finish(self, status: Progress = "completed") -> Iterator[Fields]:
        """The answer has ended; one without any item has an empty message."""
        if self._open is None and not self.done:
            yield from self._text("", [])
        yield from self._close(status)

    def _text(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[Fields]:
        item = self._open
        if not isinstance(item, OutputMessage):
            item = OutputMessage(id=_id("msg"), status="in_progress", content=[])
            yield from self._begin(item)
            item.content = [OutputText(text="", logprobs=[])]
            yield self._part("response.content_part.added", part=OutputText(text=""))
        item.content[0].text += text
        item.content[0].logprobs += logprobs
        if text:
            yield self._part("response.output_text.delta", delta=text, logprobs=logprobs)

    def _reasoning(self, text: str) -> Iterator[Fields]:
        item = self._open
        if not isinstance(item, OutputReasoning):
            item = OutputReasoning(id=_id("rs"), status="in_progress", content=[])
            yield from self._begin(item)
            item.content = [ReasoningText(text="")]
            yield self._part("response.content_part.added", part=ReasoningText(text=""))
        item.content[0].text += text
        yield self._part("response.reasoning_text.delta", delta=text)

    def _call(self, piece: ToolCallDelta) -> Iterator[Fields]:
        if piece.id is not None:
            name = piece.name or ""
            call = OutputCall(id=_id("fc"), call_id=piece.id, name=name, arguments="", status="in_progress")
            yield from self._begin(call)
        item = self._open
        if isinstance(item, OutputCall) and piece.arguments_delta:
            item.arguments += piece.arguments_delta
            yield self._at("response.function_call_arguments.delta", item_id=item.id, delta=piece.arguments_delta)

    def _begin(self, item: OutputItem) -> Iterator[Fields]:
        yield from self._close("completed")
        self._open = item
        yield self._at("response.output_item.added", item=item)

    def _close(self, status: Progress) -> Iterator[Fields]:
        item = self._open
        if item is None:
            return
        item.status = status
        if isinstance(item, OutputMessage):
            part = item.content[0]
            yield self._part("response.output_text.done", text=part.text, logprobs=part.logprobs)
            yield self._part("response.content_part.done", part=part)
        elif isinstance(item, OutputReasoning):
            thought = item.content[0]
            yield self._part("response.reasoning_text.done", text=thought.text)
            yield self._part("response.content_part.done", part=thought)
        else:
            yield self._at("response.function_call_arguments.done", item_id=item.id, arguments=item.arguments)
        yield self._at("response.output_item.done", item=item)
        self.done.append(item)
        self._open = None

    def _at(self, kind: str, **fields: Any) -> Fields:
        return {"type": kind, "output_index": len(self.done), **fields}

    def _part(self, kind: str, **fields: Any) -> Fields:
        assert self._open is not None
        return self._at(kind, item_id=self._open.id, content_index=0, **fields)


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
