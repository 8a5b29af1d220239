"""How many requests may wait, and what those are told that may not."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from dashinfer_lite.server.errors import ApiError

if TYPE_CHECKING:
    from dashinfer_lite.engine.request import Request

MAX_RETRY_S: Final = 60
JITTER: Final = 0.2
SMOOTHING: Final = 0.2  # the share of the newest measurement in the average


class PrefillRate:
    """Prompt tokens a second that leave a queue: a moving average over departures while others wait."""

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        self._last_left = -math.inf
        self._tokens = 0

    def left(self, entered_s: float, left_s: float, tokens: int) -> None:
        """A prompt has begun its first step; calls come in the order of `left_s`."""
        if entered_s > self._last_left:  # the queue was empty, so the time since says nothing about the engine
            self._last_left, self._tokens = left_s, 0
            return
        self._tokens += tokens
        if left_s > self._last_left:
            rate = self._tokens / (left_s - self._last_left)
            old = self.tokens_per_s
            self.tokens_per_s = rate if old is None else old + SMOOTHING * (rate - old)
            self._last_left, self._tokens = left_s, 0


class WaitingRoom:
    """Requests between the door and their first step, bounded by number, prompt tokens, and time to wait.

    It belongs to the event loop. Who waits is asked of the requests themselves each time, so nothing can be forgotten.
    """

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = PrefillRate()
        self.refused = {"requests": 0, "tokens": 0, "wait": 0}
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._preparing = 0
        self._waiting: list[tuple[Request, float]] = []
        self._tokens = 0  # of their prompts

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """Holds a place while a prompt is put together; ApiError 429 where there is none."""
        self.admit()
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    def admit(self, tokens: int = 1) -> None:
        """ApiError 429 where a prompt of so many tokens would wait among too many."""
        refusal = self.refusal(tokens)
        if refusal is not None:
            raise refusal

    def refusal(self, tokens: int = 1) -> ApiError | None:
        """What a prompt of at least so many tokens is told, None where it may wait. Who comes alone always gets in."""
        backlog, waiting = self.backlog(), len(self._waiting) + self._preparing
        if waiting >= self._max_requests:
            return self._full("requests", f"{waiting} requests wait already")
        if not backlog:
            return None
        if backlog + tokens > self._max_tokens:
            return self._full("tokens", f"{backlog} prompt tokens wait already")
        rate = self.rate.tokens_per_s
        if rate and backlog / rate > self._max_wait_s:
            return self._full("wait", f"the wait would be {backlog / rate:.0f} seconds")
        return None

    def enter(self, request: Request) -> None:
        """A request that was submitted waits from now on."""
        self._waiting.append((request, self._clock()))
        self._tokens += len(request.prompt_token_ids)

    def refuse(self) -> ApiError:
        """The answer to a request that found another queue full."""
        return self._full("requests", "the queue is full")

    def backlog(self) -> int:
        """The prompt tokens that wait."""
        self._let_go()
        return self._tokens

    def _let_go(self) -> None:
        """Forget those that wait no more, and learn the rate from those of them that were let in."""
        if all([request.status == "queued" for request, _ in self._waiting]):  # noqa: C419 — sooner than a generator
            return
        still, left = [], []
        for request, entered_s in self._waiting:
            tokens = len(request.prompt_token_ids)
            if request.status == "queued":
                still.append((request, entered_s))
                continue
            self._tokens -= tokens
            if (queue_s := request.timings.queue_s) is not None:
                left.append((entered_s + queue_s, entered_s, tokens))
        self._waiting = still
        for left_s, entered_s, tokens in sorted(left):
            self.rate.left(entered_s, left_s, tokens)

    def _full(self, reason: str, why: str) -> ApiError:
        self.refused[reason] += 1
        seconds = retry_after_s(self._tokens, self.rate.tokens_per_s)
        return ApiError(
            429,
            f"the server is overloaded: {why}; try again in about {math.ceil(seconds)} seconds",
            code="server_overloaded",
            headers={"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))},
        )


def retry_after_s(backlog_tokens: int, tokens_per_s: float | None) -> float:
    """Seconds until the backlog is taken in, at least 1 and at most 60, spread by 20 % so that not all come at once."""
    wait = backlog_tokens / tokens_per_s if tokens_per_s else 1.0
    spread = 1 + JITTER * (2 * random.random() - 1)
    return min(max(wait * spread, 1.0), MAX_RETRY_S)
