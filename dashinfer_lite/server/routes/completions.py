"""POST /v1/completions: texts are continued, and with `echo` scored."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from dashinfer_lite.server.answers import PING, check_end, deltas
from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.merge import merged
from dashinfer_lite.server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from dashinfer_lite.server.sampling import sampling_params, submit_options
from dashinfer_lite.server.sse import DONE, EventStream, event
from dashinfer_lite.server.sse import PING as PING_EVENT
from dashinfer_lite.server.structure import guided_of
from dashinfer_lite.server.text import encode_prompts
from dashinfer_lite.server.usage import prompt_logprobs_of, usage_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.outputs import Logprobs
    from dashinfer_lite.server.answers import Delta, Token
    from dashinfer_lite.server.service import Service

DEFAULT_MAX_TOKENS = 16


async def complete(service: Service, body: CompletionRequest) -> Completion | EventStream:
    """Answer a completion request, at once or as a stream."""
    service.check_model(body.model)
    job = _Job(service, body)
    prompts = await service.prepare(job.prepare)
    requests = job.submit(prompts)
    if body.stream:
        return EventStream(job.events(requests), requests, service.folder)
    try:
        for request in requests:
            await request
            check_end(request)
    finally:
        for request in requests:
            request.cancel()
    return job.whole(requests)


class _Job:
    """One completion request on its way."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if body.suffix:
            raise invalid("suffix is not supported: the model does not fill in the middle", param="suffix")
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise invalid("best_of must be n: all answers are returned", param="best_of")
        if max_tokens == 0 and not body.echo:
            raise invalid("max_tokens is 0; that is for echo, which returns the prompt", param="max_tokens")
        if body.echo and body.stream:
            raise invalid("echo cannot be streamed", param="echo")
        self._service = service
        self._body = body
        self._scores_prompt = bool(body.echo) and body.logprobs is not None
        self._drops_answer = max_tokens == 0  # the engine always draws one token
        more: dict[str, Any] = {
            "max_tokens": max(max_tokens, 1),
            "logprobs": body.logprobs,
            "guided": guided_of(body),
        }
        if self._scores_prompt:
            more["prompt_logprobs"] = max(body.logprobs or 0, body.prompt_logprobs or 0)
        self._params = sampling_params(service, body, **more)
        self._head: dict[str, Any] = {
            "id": f"cmpl-{body.request_id or secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.name,
        }

    def prepare(self) -> list[list[int]]:
        """The prompts' token ids; a grammar is compiled. For a worker."""
        llm, body = self._service.llm, self._body
        llm.prepare(self._params)
        special = body.add_special_tokens is not False
        return encode_prompts(llm, body.prompt, self._service.settings.max_prompts, "prompt", special)

    def submit(self, prompts: Sequence[list[int]]) -> list[Request]:
        """Queue all prompts; none is left behind where one is refused."""
        requests: list[Request] = []
        try:
            for ids in prompts:
                requests.append(self._service.submit(ids, self._params, **submit_options(self._body)))
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return requests

    def whole(self, requests: Sequence[Request]) -> Completion:
        """The answers of requests that are done."""
        choices = [
            self._choice(request, sample, at * self._params.n + sample)
            for at, request in enumerate(requests)
            for sample in range(self._params.n)
        ]
        unasked = sum(request.usage.completion_tokens for request in requests) if self._drops_answer else 0
        return Completion(**self._head, choices=choices, usage=usage_of(requests, unasked=unasked))

    async def events(self, requests: Sequence[Request]) -> AsyncIterator[bytes]:
        """The answers as events; those of several prompts come as they are made."""
        options = self._body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        always = options is not None and bool(options.continuous_usage_stats)
        offsets = [[0] * self._params.n for _ in requests]
        ping_s = self._service.settings.ping_s
        async for at, delta in merged([deltas(request, ping_s) for request in requests]):
            if delta is PING:
                yield PING_EVENT
                continue
            usage = usage_of(requests) if always else None if with_usage else UNSET
            choice = self._piece(delta, at, offsets[at])
            yield event(Completion(**self._head, choices=[choice], usage=usage))
        if with_usage:
            yield event(Completion(**self._head, choices=[], usage=usage_of(requests)))
        yield DONE

    def _piece(self, delta: Delta, at: int, offsets: list[int]) -> CompletionChoice:
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = _Logprobs(offsets[delta.answer], self._body.logprobs)
            logprobs.add(self._service, delta.tokens)
        offsets[delta.answer] += len(delta.text)
        return CompletionChoice(
            index=at * self._params.n + delta.answer,
            text=delta.text,
            logprobs=logprobs.entries if logprobs else None,
            finish_reason=delta.finish_reason,  # type: ignore[arg-type]
            stop_reason=delta.stop_reason,
        )

    def _choice(self, request: Request, index: int, number: int) -> CompletionChoice:
        output = request.output()
        answer = output.outputs[index]
        text = "" if self._drops_answer else answer.text
        tokens = [] if self._drops_answer else request.samples[index].tokens_from(0)[: request.samples[index].visible]
        prefix, logprobs = "", None
        if self._body.logprobs is not None:
            logprobs = _Logprobs(0, self._body.logprobs)
        if self._body.echo:
            ids = output.prompt_token_ids
            prefix = self._service.tokenizer.decode(ids, skip_special_tokens=False)
            if logprobs is not None:
                logprobs.add(self._service, list(zip(ids, output.prompt_logprobs or [], strict=True)))
        if logprobs is not None:
            logprobs.offset = len(prefix)
            logprobs.add(self._service, tokens)
        positions = output.prompt_logprobs if self._body.prompt_logprobs is not None else None
        return CompletionChoice(
            index=number,
            text=prefix + text,
            logprobs=logprobs.entries if logprobs else None,
            finish_reason="length" if self._drops_answer else answer.finish_reason,  # type: ignore[arg-type]
            stop_reason=answer.stop_reason,
            prompt_logprobs=UNSET if positions is None else prompt_logprobs_of(positions),
        )


class _Logprobs:
    """The four lists of a choice, growing; `offset` is where the next token's text begins."""

    def __init__(self, offset: int, most: int) -> None:
        self.offset = offset
        self.entries = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        self._most = most

    def add(self, service: Service, tokens: Sequence[Token]) -> None:
        """Append tokens with what was measured at their places."""
        for token, found in tokens:
            text = _text(service, token, found)
            entries = self.entries
            entries.tokens.append(text)
            entries.token_logprobs.append(found[token].logprob if found else None)
            entries.top_logprobs.append(self._best(service, found) if found else None)
            entries.text_offset.append(self.offset)
            self.offset += len(text)

    def _best(self, service: Service, found: Logprobs) -> dict[str, float]:
        """The most likely tokens and the one that is there, by text; of equal texts the likelier one counts."""
        first = next(iter(found))
        kept = [(token, entry) for token, entry in found.items() if token == first or (entry.rank or 0) <= self._most]
        kept.sort(key=lambda item: item[1].logprob)
        texts = {_text(service, token, found): entry.logprob for token, entry in kept}
        return dict(sorted(texts.items(), key=lambda item: -item[1]))


def _text(service: Service, token: int, found: Logprobs | None) -> str:
    text = found[token].decoded_token if found else None
    if text is None:
        data = service.tokenizer.token_bytes(token)
        text = "" if data is None else data.decode("utf-8", "replace")
    return text
