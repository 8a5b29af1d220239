"""POST /v1/chat/completions: a conversation is answered."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from dashinfer_lite.server.answers import PING, check_end, deltas
from dashinfer_lite.server.chat_plan import ChatPlan
from dashinfer_lite.server.logprobs import chat_logprobs
from dashinfer_lite.server.protocol.chat import (
    Answer,
    AnswerDelta,
    CalledFunction,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    FinishReason,
    FunctionDelta,
    ToolCall,
    ToolCallPiece,
)
from dashinfer_lite.server.sse import DONE, EventStream, event
from dashinfer_lite.server.sse import PING as PING_EVENT
from dashinfer_lite.server.thoughts import ThoughtTokens
from dashinfer_lite.server.usage import prompt_logprobs_of, usage_of
from dashinfer_lite.tools import Parsed, ReasoningDelta, TextDelta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.server.answers import Delta, Token
    from dashinfer_lite.server.protocol.common import Usage
    from dashinfer_lite.server.service import Service
    from dashinfer_lite.tools import Delta as Piece


async def chat(service: Service, body: ChatRequest) -> Chat | EventStream:
    """Answer a conversation, at once or as a stream."""
    service.check_model(body.model)
    plan = await ChatPlan.of(service, body)
    request = plan.submit(service)
    job = _Job(service, body, plan, request)
    if body.stream:
        return EventStream(job.events(), [request], service.folder)
    try:
        await request
        check_end(request)
        return job.whole()
    finally:
        request.cancel()


class _Job:
    """One conversation on its way."""

    def __init__(self, service: Service, body: ChatRequest, plan: ChatPlan, request: Request) -> None:
        self._service = service
        self._body = body
        self._request = request
        self._parsers = [plan.parser() for _ in request.samples]
        self._answers = [Parsed() for _ in request.samples]
        self._thoughts = [ThoughtTokens(service.tokenizer.encode) for _ in request.samples]
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{body.request_id or secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.name,
        }

    def whole(self) -> Chat:
        """The answers of a request that is done."""
        output = self._request.output()
        choices = []
        for answer, found in zip(self._answers, output.outputs, strict=True):
            self._take(found.index, found.text, is_last=True)
            sample = self._request.samples[found.index]
            choices.append(
                ChatChoice(
                    index=found.index,
                    message=self._message(answer),
                    logprobs=self._logprobs(sample.tokens_from(0)[: sample.visible]),
                    finish_reason=finish_reason(answer, found.finish_reason),
                    stop_reason=found.stop_reason,
                )
            )
        positions = output.prompt_logprobs
        return Chat(
            **self._head,
            choices=choices,
            usage=self._usage(),
            prompt_logprobs=UNSET if positions is None else prompt_logprobs_of(positions),
        )

    async def events(self) -> AsyncIterator[bytes]:
        """The answers as events: the role, pieces, the end of each, the usage where it is wanted."""
        options = self._body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        always = options is not None and bool(options.continuous_usage_stats)

        def chunk(choice: ChunkChoice) -> bytes:
            usage = self._usage() if always else None if with_usage else UNSET
            return event(ChatChunk(**self._head, choices=[choice], usage=usage))

        for at in range(len(self._answers)):
            yield chunk(ChunkChoice(index=at, delta=AnswerDelta(role="assistant", content="")))
        async for delta in deltas(self._request, self._service.settings.ping_s):
            if delta is PING:
                yield PING_EVENT
                continue
            for choice in self._pieces(delta):
                yield chunk(choice)
        if with_usage:
            yield event(ChatChunk(**self._head, choices=[], usage=self._usage()))
        yield DONE

    def _pieces(self, delta: Delta) -> Iterator[ChunkChoice]:
        """What a delta adds to its answer, and its end as a piece of its own."""
        pieces = self._take(delta.answer, delta.text, delta.finish_reason is not None)
        logprobs = self._logprobs(delta.tokens) if delta.tokens else None
        shown = [_delta(piece) for piece in pieces if self._shows_reasoning or not isinstance(piece, ReasoningDelta)]
        if logprobs is not None and not shown:
            shown = [AnswerDelta(content="")]
        for each in shown:
            yield ChunkChoice(index=delta.answer, delta=each, logprobs=logprobs)
            logprobs = None
        if delta.finish_reason is not None:
            yield ChunkChoice(
                index=delta.answer,
                delta=AnswerDelta(),
                finish_reason=finish_reason(self._answers[delta.answer], delta.finish_reason),
                stop_reason=UNSET if delta.stop_reason is None else delta.stop_reason,
            )

    def _take(self, index: int, text: str, is_last: bool) -> list[Piece]:
        """More of an answer, taken apart."""
        parser = self._parsers[index]
        pieces = parser.push(text)
        if is_last:
            pieces += parser.finish()
        self._answers[index].add(pieces)
        self._thoughts[index].add(pieces)
        return pieces

    def _logprobs(self, tokens: Sequence[Token]) -> ChatLogprobs | None:
        return chat_logprobs(self._service, tokens, self._body.top_logprobs or 0) if self._body.logprobs else None

    @property
    def _shows_reasoning(self) -> bool:
        return self._body.include_reasoning is not False

    def _message(self, answer: Parsed) -> Answer:
        calls = [
            ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for call in answer.calls
        ]
        return Answer(
            content=answer.text if answer.text or not calls else None,
            reasoning_content=(answer.reasoning if self._shows_reasoning else "") or UNSET,
            tool_calls=calls or UNSET,
        )

    def _usage(self) -> Usage:
        return usage_of([self._request], sum(thoughts.total() for thoughts in self._thoughts))


def finish_reason(answer: Parsed, reason: str | None) -> FinishReason:
    """How a message ended, given how its text did."""
    if reason == "length":
        return "length"
    return "tool_calls" if answer.calls else "stop"


def _delta(piece: Piece) -> AnswerDelta:
    """A parsed piece as clients read it."""
    if isinstance(piece, TextDelta):
        return AnswerDelta(content=piece.text)
    if isinstance(piece, ReasoningDelta):
        return AnswerDelta(reasoning_content=piece.text)
    function = FunctionDelta(arguments=piece.arguments_delta)
    if piece.id is None:
        return AnswerDelta(tool_calls=[ToolCallPiece(index=piece.index, function=function)])
    function.name = piece.name or ""
    return AnswerDelta(tool_calls=[ToolCallPiece(index=piece.index, id=piece.id, type="function", function=function)])
