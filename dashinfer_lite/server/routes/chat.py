"""POST /v1/chat/completions: a conversation is answered."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from dashinfer_lite.server.answers import PING, check_end, deltas
from dashinfer_lite.server.assistant import Assistant
from dashinfer_lite.server.chat_plan import ChatPlan
from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.logprobs import chat_logprobs
from dashinfer_lite.server.protocol.chat import (
    Answer,
    AnswerDelta,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    FunctionDelta,
    ToolCallPiece,
)
from dashinfer_lite.server.sse import DONE, EventStream, event
from dashinfer_lite.server.sse import PING as PING_EVENT
from dashinfer_lite.server.usage import prompt_logprobs_of, usage_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.server.answers import Delta, Token
    from dashinfer_lite.server.service import Service


async def chat(service: Service, body: ChatRequest) -> Chat | EventStream:
    """Answer a conversation, at once or as a stream."""
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", param="top_logprobs")
    plan = ChatPlan.of_chat(service, body)
    request = await plan.submit(service)
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
        self._answers = [Assistant(plan.parser(service)) for _ in request.samples]
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
            answer.push(found.text)
            answer.finish()
            tokens = self._request.samples[found.index].tokens_from(0)[: self._request.samples[found.index].visible]
            choices.append(
                ChatChoice(
                    index=found.index,
                    message=self._message(answer),
                    logprobs=self._logprobs(tokens),
                    finish_reason=answer.finish_reason(found.finish_reason),
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
        answer = self._answers[delta.answer]
        pieces = answer.push(delta.text)
        if delta.finish_reason is not None:
            pieces += answer.finish()
        logprobs = self._logprobs(delta.tokens) if delta.tokens else None
        shown = [_delta(piece) for piece in pieces if piece.kind != "reasoning" or self._shows_reasoning]
        if logprobs is not None and not shown:
            shown = [AnswerDelta(content="")]
        for each in shown:
            yield ChunkChoice(index=delta.answer, delta=each, logprobs=logprobs)
            logprobs = None
        if delta.finish_reason is not None:
            yield ChunkChoice(
                index=delta.answer,
                delta=AnswerDelta(),
                finish_reason=answer.finish_reason(delta.finish_reason),
                stop_reason=UNSET if delta.stop_reason is None else delta.stop_reason,
            )

    def _logprobs(self, tokens: Sequence[Token]) -> ChatLogprobs | None:
        return chat_logprobs(self._service, tokens, self._body.top_logprobs or 0) if self._body.logprobs else None

    @property
    def _shows_reasoning(self) -> bool:
        return self._body.include_reasoning is not False

    def _message(self, answer: Assistant) -> Answer:
        reasoning = answer.reasoning if self._shows_reasoning else ""
        return Answer(
            content=answer.text if answer.text or not answer.calls else None,
            reasoning_content=reasoning or UNSET,
            tool_calls=answer.calls or UNSET,
        )

    def _usage(self) -> Any:
        return usage_of([self._request])


def _delta(piece: Any) -> AnswerDelta:
    """A parsed piece as clients read it."""
    if piece.kind == "text":
        return AnswerDelta(content=piece.text)
    if piece.kind == "reasoning":
        return AnswerDelta(reasoning_content=piece.text)
    is_first = piece.name is not None
    return AnswerDelta(
        tool_calls=[
            ToolCallPiece(
                index=piece.call,
                id=piece.id if is_first else UNSET,
                type="function" if is_first else UNSET,
                function=FunctionDelta(
                    name=piece.name if is_first else UNSET,
                    arguments=piece.text if piece.text or not is_first else "",
                ),
            )
        ]
    )
