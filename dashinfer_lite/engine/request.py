"""The handle of a request: its status, its stream, its result."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from dashinfer_lite.outputs import Logprobs, RequestOutput, Timings, Usage

if TYPE_CHECKING:
    from dashinfer_lite.engine.codec import Codec
    from dashinfer_lite.engine.sample import RawLogprobs, Sample
    from dashinfer_lite.sampling_params import SamplingParams

Status = Literal["queued", "prefilling", "generating", "finished", "cancelled", "failed"]
T = TypeVar("T")


class Host(Protocol):
    """What a handle needs from the engine it belongs to."""

    @property
    def is_pumped(self) -> bool:
        """Whether the engine has no thread, so that whoever waits must call `step`."""
        ...

    def step(self) -> bool: ...

    def cancel(self, request: Request) -> None: ...

    def check_process(self) -> None:
        """Raise DashInferError after a fork."""
        ...


class Request:
    """A request on its way. Any thread and any event loop may use it.

    Iterating (`for` or `async for`) gives pieces of the first answer's text; they join to `text`. `pieces(i)` and
    `tokens(i)` stream the i-th of n answers. What has been generated is kept, so a stream may be read again and by
    several readers. Where a request failed, its streams and `result` raise the error; a cancelled one just ends.
    """

    def __init__(
        self,
        host: Host,
        request_id: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        seed: int,
        samples: list[Sample],
        codec: Codec | None,
        owner: object = None,
    ) -> None:
        self.id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.seed = seed
        self.samples = samples
        self.raw_prompt_logprobs: list[RawLogprobs] = []
        self.cached_tokens = 0
        self.embedding: list[float] | None = None  # the prompt's vector, where that was asked for
        self._host = host
        self._owner = owner  # keeps alive what would close the engine
        self._codec = codec
        self._status: Status = "queued"
        self._error: Exception | None = None
        self._version = 0  # rises with every change that a reader may wait for
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._sleepers = 0  # threads that wait, as `_waiters` are tasks
        self._submitted_s = time.perf_counter()
        self._started_s: float | None = None
        self._first_token_s: float | None = None
        self._ended_s: float | None = None

    # ------------------------------------------------------------------------------------------------- for users --

    @property
    def status(self) -> Status:
        return self._status

    @property
    def is_done(self) -> bool:
        return self._ended_s is not None

    @property
    def version(self) -> int:
        """Rises with every change; read it before what you look at, then wait with `changed`."""
        return self._version

    @property
    def text(self) -> str:
        """The text of the first answer so far."""
        self._host.check_process()
        return "".join(self.samples[0].pieces_from(0))

    @property
    def usage(self) -> Usage:
        completion = sum(len(sample.token_ids) for sample in self.samples)
        return Usage(len(self.prompt_token_ids), completion, self.cached_tokens)

    @property
    def timings(self) -> Timings:
        return Timings(*map(self._since_submission, (self._started_s, self._first_token_s, self._ended_s)))

    def pieces(self, index: int = 0) -> Stream[str]:
        """Stream one answer's text."""
        return Stream(self, self.samples[index], self.samples[index].pieces_from)

    def tokens(self, index: int = 0) -> Stream[tuple[int, Logprobs | None]]:
        """Stream one answer's token ids, each with its log probabilities where they were asked for."""
        return Stream(self, self.samples[index], self.samples[index].tokens_from)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end; TimeoutError after `timeout` seconds, else what made the request fail."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            version = self._version  # read first, so that no change is missed
            if self.is_done:
                return self._checked_output()
            self._wait(version, deadline)

    def output(self) -> RequestOutput:
        """What there is so far; never waits, never raises because the request failed."""
        self._host.check_process()
        error, is_done = self._error, self.is_done
        return RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=list(self.prompt_token_ids),
            outputs=[sample.output() for sample in self.samples],
            prompt_logprobs=self._prompt_logprobs(),
            finished=is_done,
            usage=self.usage,
            timings=self.timings,
            seed=self.seed,
            error=None if error is None else str(error),
        )

    async def changed(self, version: int, timeout_s: float | None = None) -> bool:
        """Wait until something has changed since `version`; False where nothing has within `timeout_s`."""
        self._host.check_process()
        loop = asyncio.get_running_loop()
        waiter = (loop, loop.create_future())
        with self._changed:
            self._waiters.append(waiter)
            if self._version != version:
                self._waiters.remove(waiter)
                return True
        timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter[1])
        try:
            await waiter[1]
        finally:
            if timer is not None:
                timer.cancel()
            if self._version == version:  # cancelled, or too late
                self._forget(waiter)
        return self._version != version

    def cancel(self) -> None:
        """End the request within one step; what it has generated stays readable. No effect once it is done."""
        self._host.cancel(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces())

    def __aiter__(self) -> AsyncIterator[str]:
        return aiter(self.pieces())

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return self._result_async().__await__()

    def __repr__(self) -> str:
        return f"<Request {self.id} {self._status}>"

    # -------------------------------------------------------------------------------------------- for the engine --

    def begin(self, cached_tokens: int) -> None:
        """Note that the first step is on its way."""
        self.cached_tokens = cached_tokens
        self._status = "prefilling"
        self._started_s = time.perf_counter()

    def notify(self, is_generating: bool = False) -> None:
        """Wake whoever waits for a change."""
        if is_generating and self._first_token_s is None and not self.is_done:
            self._first_token_s = time.perf_counter()
            self._status = "generating"
        self._version += 1
        if not self._sleepers and not self._waiters:  # who comes later looks at the version behind this
            return
        with self._changed:
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # the loop is closed, so nobody waits any more
                continue

    def settle(self, status: Status, error: Exception | None = None) -> None:
        """End the request. The answers that have no finish reason yet get one."""
        self._error = error  # before the finish reasons, which send readers here
        for sample in self.samples:
            if sample.finish_reason is None:
                sample.finish_reason = "cancelled" if error is None else "error"
        self._status = status
        self._ended_s = time.perf_counter()
        self._owner = None
        self.notify()

    # ---------------------------------------------------------------------------------------------------- inside --

    def _forget(self, waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]) -> None:
        with self._changed:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _since_submission(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self._submitted_s

    def _prompt_logprobs(self) -> list[Logprobs | None] | None:
        if self.params.prompt_logprobs is None:
            return None
        return [None, *(entry.readable(self._codec) for entry in list(self.raw_prompt_logprobs))]

    def _checked_output(self) -> RequestOutput:
        self._host.check_process()
        if self._error is not None:
            raise self._error
        return self.output()

    def _wait(self, version: int, deadline: float | None = None) -> None:
        """Wait until something has changed since `version`."""
        self._host.check_process()
        if self._host.is_pumped:
            self._host.step()
            if deadline is not None and time.monotonic() > deadline and not self.is_done:
                raise TimeoutError(f"request {self.id} is not done; it is {self._status}")
            return
        with self._changed:
            self._sleepers += 1
            try:
                while self._version == version:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(f"request {self.id} is not done; it is {self._status}")
                    self._changed.wait(left)
            finally:
                self._sleepers -= 1

    async def _result_async(self) -> RequestOutput:
        while True:
            version = self._version
            if self.is_done:
                return self._checked_output()
            await self.changed(version)


class Stream(Generic[T]):
    """The items of one answer, as they come; for `for` and for `async for`."""

    def __init__(self, request: Request, sample: Sample, items_from: Callable[[int], list[T]]) -> None:
        self._request = request
        self._sample = sample
        self._items_from = items_from

    def __iter__(self) -> Iterator[T]:
        seen = 0
        while True:
            items, is_last, version = self._look(seen)
            yield from items
            seen += len(items)
            if is_last:
                self._end()
                return
            self._request._wait(version)

    async def __aiter__(self) -> AsyncIterator[T]:
        seen = 0
        while True:
            items, is_last, version = self._look(seen)
            for item in items:
                yield item
            seen += len(items)
            if is_last:
                self._end()
                return
            await self._request.changed(version)

    def _look(self, seen: int) -> tuple[list[T], bool, int]:
        """New items, whether they are the last, and the version to wait from."""
        self._request._host.check_process()
        # In this order: what changes after the version was read is not missed, what comes before the end neither.
        version = self._request._version
        is_last = self._sample.finish_reason is not None
        return self._items_from(seen), is_last, version

    def _end(self) -> None:
        if self._sample.finish_reason == "error" and self._request._error is not None:
            raise self._request._error


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
