"""Sending requests on time, and what each of them saw."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.bench_serve_http import HttpError

if TYPE_CHECKING:
    from dashinfer_lite.cli.bench_serve_http import Server
    from dashinfer_lite.cli.bench_serve_work import Job


@dataclass(slots=True)
class Outcome:
    """One request. Times are in seconds: `begin` since the first request could go out, the others since `begin`."""

    begin: float
    end: float = 0.0
    pieces: list[float] = field(default_factory=list)  # when each piece of the stream came
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """To the first piece; None where the answer was not streamed, or has no text."""
        return self.pieces[0] if self.pieces else None

    @property
    def tpot(self) -> float | None:
        """Per token after the first one; None where there is none."""
        if not self.pieces or self.output_tokens < 2:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.output_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Between a piece and the next one."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """When requests go out, in seconds: all at once, or with exponential gaps of 1 / rate on average."""
    if math.isinf(rate):
        return [0.0] * count
    draw = random.Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + draw.expovariate(rate))
    return times


async def run_load(
    server: Server,
    jobs: Sequence[Job],
    times: Sequence[float],
    is_streamed: bool,
    concurrency: int | None,
    progress: Callable[[int, int], None],
) -> list[Outcome]:
    """Send each job at its time, or later where `concurrency` are under way already; outcomes are in order."""
    room = asyncio.Semaphore(concurrency) if concurrency else nullcontext()
    zero = time.perf_counter()
    done = 0

    async def one(job: Job, at: float) -> Outcome:
        nonlocal done
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - zero)))
        async with room:
            outcome = await _send(server, job, is_streamed, zero)
        done += 1
        progress(done, len(jobs))
        return outcome

    return await asyncio.gather(*(one(job, at) for job, at in zip(jobs, times, strict=False)))


async def _send(server: Server, job: Job, is_streamed: bool, zero: float) -> Outcome:
    begin = time.perf_counter()
    outcome = Outcome(begin - zero)
    try:
        if is_streamed:
            body = {**job.body, "stream": True, "stream_options": {"include_usage": True}}
            async for event in server.stream(job.path, body):
                if any(_has_token(choice) for choice in event.get("choices") or ()):
                    outcome.pieces.append(time.perf_counter() - begin)
                _count(outcome, event.get("usage"))
        else:
            _count(outcome, (await server.ask("POST", job.path, job.body)).get("usage"))
    except HttpError as error:
        outcome.error = str(error)
    except (AttributeError, TypeError, ValueError):
        outcome.error = "the answer has not the form of OpenAI's"
    outcome.end = time.perf_counter() - begin
    return outcome


def _has_token(choice: dict[str, Any]) -> bool:
    """Whether a piece brings a token: the first one of a chat has the role alone, the last one of both the reason."""
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text")) or choice.get("finish_reason") is None
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _count(outcome: Outcome, usage: dict[str, Any] | None) -> None:
    if usage:
        outcome.prompt_tokens = int(usage["prompt_tokens"])
        outcome.output_tokens = int(usage.get("completion_tokens") or 0)
        outcome.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
