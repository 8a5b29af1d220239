"""The public face for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

from dashinfer_lite.errors import CapacityError
from dashinfer_lite.llm import LLM
from dashinfer_lite.prompts import (
    Messages,
    Params,
    Prompt,
    is_single_conversation,
    is_single_prompt,
    listed_prompts,
    params_for_each,
)

if TYPE_CHECKING:
    from dashinfer_lite.engine import Request
    from dashinfer_lite.engine.pooling import Kind as Pooling
    from dashinfer_lite.outputs import EmbeddingOutput, RequestOutput
    from dashinfer_lite.sampling_params import SamplingParams


class AsyncLLM:
    """A model for coroutines, from any event loop. It takes what LLM takes, or an LLM that is there already.

    Loading happens where the object is made; `await AsyncLLM.load(…)` does it beside the event loop.
    """

    def __init__(self, *args: Any, llm: LLM | None = None, **options: Any) -> None:
        self.llm = llm if llm is not None else LLM(*args, **options)

    @classmethod
    async def load(cls, *args: Any, **options: Any) -> Self:
        """Load a model in a thread."""
        llm = await asyncio.to_thread(LLM, *args, **options)
        return cls(llm=llm)

    def submit(self, *args: Any, **options: Any) -> Request:
        """As LLM.submit; the handle can be awaited, and iterated with `async for`.

        A guided request whose grammar is new holds up the event loop; `await prepare(params)` before it does not.
        """
        return self.llm.submit(*args, **options)

    async def prepare(self, params: SamplingParams | None) -> None:
        """As LLM.prepare, beside the event loop."""
        if params is not None and params.guided is not None:
            await asyncio.to_thread(self.llm.prepare, params)

    async def stream(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Messages | None = None,
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece; leaving the loop cancels the request."""
        await self.prepare(params)
        request = self.llm.submit(prompt, params, messages=messages, **options)
        try:
            async for piece in request:
                yield piece
        finally:
            request.cancel()

    async def generate(self, prompts: Prompt | Sequence[Prompt], params: Params = None) -> list[RequestOutput]:
        """As LLM.generate."""
        listed = listed_prompts(prompts)
        jobs = zip(listed, params_for_each(params, len(listed)), strict=True)
        return await self._run([{"prompt": prompt, "params": own} for prompt, own in jobs], is_single_prompt(prompts))

    @overload
    async def chat(self, messages: Messages, params: Params = None, **template: Any) -> RequestOutput: ...
    @overload
    async def chat(
        self, messages: Sequence[Messages], params: Params = None, **template: Any
    ) -> list[RequestOutput]: ...
    async def chat(
        self, messages: Messages | Sequence[Messages], params: Params = None, **template: Any
    ) -> RequestOutput | list[RequestOutput]:
        """As LLM.chat."""
        is_single = is_single_conversation(messages)
        listed: Sequence[Any] = [messages] if is_single else messages
        jobs = zip(listed, params_for_each(params, len(listed)), strict=True)
        outputs = await self._run([{"messages": item, "params": own, **template} for item, own in jobs], is_single)
        return outputs[0] if is_single else outputs

    async def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "last", normalize: bool = True
    ) -> list[EmbeddingOutput]:
        """As LLM.embed."""
        return await asyncio.to_thread(self.llm.embed, prompts, pooling=pooling, normalize=normalize)

    async def close(self) -> None:
        """As LLM.close, beside the event loop."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _run(self, jobs: Sequence[dict[str, Any]], is_single: bool) -> list[RequestOutput]:
        """Run requests to their ends; while the queue is full, the next one waits for one of these."""
        requests: list[Request] = []
        try:
            for job in jobs:
                await self.prepare(job["params"])
                while True:
                    try:
                        requests.append(self.llm.submit(**job))
                        break
                    except CapacityError:
                        waiting = next((request for request in requests if not request.is_done), None)
                        if waiting is None:
                            raise
                        await _settled(waiting)
            return [await request if is_single else await _settled(request) for request in requests]
        finally:
            for request in requests:
                request.cancel()


async def _settled(request: Request) -> RequestOutput:
    """A request's output once it is done, even where it failed."""
    try:
        return await request
    except Exception:
        if not request.is_done:
            raise
        return request.output()
