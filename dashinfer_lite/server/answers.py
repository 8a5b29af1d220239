"""An answer as it comes: what each of a request's answers has that is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dashinfer_lite.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.engine.sample import Sample
    from dashinfer_lite.outputs import Logprobs

Token = tuple[int, "Logprobs | None"]


class Delta(NamedTuple):
    """What is new in the `answer`-th answer; `finish_reason` comes with the last one."""

    answer: int
    text: str
    tokens: list[Token]
    finish_reason: str | None
    stop_reason: int | str | None


PING = None  # in place of a delta: nothing has happened for a while


async def deltas(request: Request, ping_s: float) -> AsyncIterator[Delta | None]:
    """Stream all answers of a request; whoever leaves, for whatever reason, cancels it.

    A reader that is slow gets more at a time and nothing piles up. What made a request fail is raised.
    """
    cursors = [_Cursor(sample) for sample in request.samples]
    try:
        while True:
            version, is_done = request.version, request.is_done
            for cursor in cursors:
                delta = cursor.advance()
                if delta is not None:
                    yield delta
            if is_done:
                check_end(request)
                return
            if not await request.changed(version, ping_s):
                yield PING
    finally:
        request.cancel()


def check_end(request: Request) -> None:
    """Raise what made a request fail, and ApiError 503 for one that was cancelled."""
    if request.status == "failed":
        request.result()
    if request.status == "cancelled":
        raise ApiError(503, "the request was cancelled by the server", code="cancelled")


class _Cursor:
    """How far an answer has been read."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._pieces = self._tokens = 0
        self._is_done = False

    def advance(self) -> Delta | None:
        """What is new, None where nothing is."""
        if self._is_done:
            return None
        sample = self._sample
        # In this order: the engine sets the reason last of all, so what is read after it is complete.
        reason = sample.finish_reason
        visible = sample.visible
        pieces = sample.pieces_from(self._pieces)
        tokens = sample.tokens_from(self._tokens)[: visible - self._tokens]
        if not pieces and not tokens and reason is None:
            return None
        self._pieces += len(pieces)
        self._tokens += len(tokens)
        self._is_done = reason is not None
        stop_reason = sample.stop_reason if self._is_done else None
        return Delta(sample.index, "".join(pieces), tokens, reason, stop_reason)
