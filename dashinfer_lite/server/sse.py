"""Server-sent events, in OpenAI's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from dashinfer_lite.server.errors import as_api_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.server.errors import ApiError

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # proxies must not collect events
}

_encode = msgspec.json.Encoder().encode


def event(data: msgspec.Struct, name: str | None = None) -> bytes:
    """One event; JSON has no line breaks outside strings, and none inside them."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return b"%sdata: %s\n\n" % (head, _encode(data))


class EventStream(Response):
    """Sends events as they come. What goes wrong after the first one ends the stream with an error event.

    The requests behind the events are cancelled when the response ends, even where the first event was never asked for.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        requests: Sequence[Request],
        folder: str = "",
        on_error: Callable[[ApiError], bytes] | None = None,
    ) -> None:
        """`on_error` makes the last event of what broke off; None: OpenAI's error object."""
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        self._events = events
        self._requests = requests
        self._folder = folder
        self._on_error = on_error or _error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events: Any = self._events
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                data = self._on_error(as_api_error(error, self._folder))
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for request in self._requests:
                request.cancel()
            await events.aclose()


def _error_event(error: ApiError) -> bytes:
    return event(error.reply)
