"""POST /v1/responses: a conversation is answered, in the form of OpenAI's newer interface. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from dashinfer_lite.server.answers import PING, check_end, deltas
from dashinfer_lite.server.chat_plan import ChatPlan
from dashinfer_lite.server.logprobs import chat_logprobs
from dashinfer_lite.server.protocol.responses import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    Reasoning,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseRequest,
    ResponseUsage,
    TextFormat,
    TextOptions,
)
from dashinfer_lite.server.response_input import LOGPROBS, chat_request
from dashinfer_lite.server.response_items import ResponseItems
from dashinfer_lite.server.sse import PING as PING_EVENT
from dashinfer_lite.server.sse import EventStream, event
from dashinfer_lite.server.thoughts import ThoughtTokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.server.answers import Delta
    from dashinfer_lite.server.errors import ApiError
    from dashinfer_lite.server.protocol.chat import TokenLogprob
    from dashinfer_lite.server.response_items import Fields
    from dashinfer_lite.server.service import Service


async def respond(service: Service, body: ResponseRequest) -> ResponseObject | EventStream:
    """Answer, at once or as a stream."""
    service.check_model(body.model)
    plan = await ChatPlan.of(service, chat_request(body))
    request = plan.submit(service)
    job = _Job(service, body, plan, request)
    if body.stream:
        return EventStream(job.events(), [request], service.folder, job.failed)
    try:
        await request
        check_end(request)
    finally:
        request.cancel()
    async for _ in job.events():
        pass
    return job.response


class _Job:
    """One response on its way; `response` is what is known of it."""

    def __init__(self, service: Service, body: ResponseRequest, plan: ChatPlan, request: Request) -> None:
        self._service = service
        self._request = request
        self._parser = plan.parser()
        self._items = ResponseItems()
        self._thoughts = ThoughtTokens(service.tokenizer.encode)
        self._events = 0
        self._wants_logprobs = LOGPROBS in (body.include or ())
        self._most = body.top_logprobs or 0
        self.response = ResponseObject(
            id=f"resp_{secrets.token_hex(16)}",
            created_at=int(time.time()),
            status="in_progress",
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=service.name,
            output=self._items.done,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            reasoning=body.reasoning or Reasoning(),
            temperature=plan.params.temperature,
            text=body.text if body.text and body.text.format else TextOptions(format=TextFormat(type="text")),
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            top_p=plan.params.top_p,
            truncation=body.truncation or "disabled",
            metadata=body.metadata or {},
        )

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        yield self._event({"type": "response.created", "response": self.response})
        yield self._event({"type": "response.in_progress", "response": self.response})
        async for delta in deltas(self._request, self._service.settings.ping_s):
            if delta is PING:
                yield PING_EVENT
                continue
            for fields in self._advance(delta):
                yield self._event(fields)
        self.response.usage = self._usage()
        yield self._event({"type": f"response.{self.response.status}", "response": self.response})

    def failed(self, error: ApiError) -> bytes:
        """The last event of a response that broke off."""
        self.response.status = "failed"
        self.response.error = ResponseError(code=error.code or "server_error", message=error.message)
        return self._event({"type": "response.failed", "response": self.response})

    def _advance(self, delta: Delta) -> Iterator[Fields]:
        pieces = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            pieces += self._parser.finish()
        self._thoughts.add(pieces)
        yield from self._items.push(pieces, self._logprobs(delta))
        if delta.finish_reason == "length":
            self.response.status = "incomplete"
            self.response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
            yield from self._items.finish("incomplete")
        elif delta.finish_reason is not None:
            self.response.status = "completed"
            yield from self._items.finish()

    def _logprobs(self, delta: Delta) -> list[TokenLogprob]:
        return chat_logprobs(self._service, delta.tokens, self._most).content if self._wants_logprobs else []

    def _event(self, fields: Fields) -> bytes:
        made = ResponseEvent(sequence_number=self._events, **fields)
        self._events += 1
        return event(made, made.type)

    def _usage(self) -> ResponseUsage:
        usage = self._request.usage
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=self._thoughts.total()),
            total_tokens=usage.total_tokens,
        )
