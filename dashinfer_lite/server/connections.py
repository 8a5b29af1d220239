"""uvicorn's connections with fewer packets and more limits: on headers, and on readers that do not read. Their ends."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvicorn.server import ServerState

HEADER_TIMEOUT_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 30.0
_CLOSING_TURNS: Final = 200
MAX_HEADER_BYTES: Final = 96 << 10  # of a request on its way; what has arrived is held to Settings.max_headers


@cache
def limited_protocol(
    write_timeout_s: float = WRITE_TIMEOUT_S, header_timeout_s: float = HEADER_TIMEOUT_S, base: str | None = None
) -> type:
    """uvicorn's HTTP protocol with limits on what a client may keep waiting; see `_protocol` for `base`."""
    protocol: Any = _protocol(base)

    class LimitedProtocol(protocol):  # type: ignore[misc]
        """One connection."""

        _patience: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(cast("asyncio.Transport", _Joined(transport, self.loop)))
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._is_between_requests():
                self._header_bytes = 0
                self._stop(self._patience)
                self._patience = None
                return
            self._header_bytes += len(data)
            self._expect_headers()
            if self._header_bytes > MAX_HEADER_BYTES:
                self.transport.abort()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop(self._patience)
            self._stop(self._unread)
            super().connection_lost(error)

        def pause_writing(self) -> None:
            """The client does not read: it has some time to change its mind."""
            super().pause_writing()
            self._expect_reading()

        def resume_writing(self) -> None:
            self._stop(self._unread)
            super().resume_writing()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():  # which would wait for the client without end
                self._expect_reading()

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():
                self._expect_reading()
            else:
                super().timeout_keep_alive_handler()

        def _expect_reading(self) -> None:
            self._stop(self._unread)
            self._unread = self.loop.call_later(write_timeout_s, self._give_up)

        def _give_up(self) -> None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            elif self._is_between_requests():
                self.transport.close()

        def _is_between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect_headers(self) -> None:
            """A request that has begun must be there soon; uvicorn itself looks after idle connections."""
            if self._patience is None:
                self._patience = self.loop.call_later(header_timeout_s, self._lose_patience)

        def _lose_patience(self) -> None:
            self._patience = None
            if self._is_between_requests():
                self.transport.abort()

        @staticmethod
        def _stop(timer: asyncio.TimerHandle | None) -> None:
            if timer is not None:
                timer.cancel()

    return LimitedProtocol


class _Joined:
    """A transport that sends what is written within one turn of the event loop at once.

    An answer's head and body come from uvicorn one after the other; on their own each would wake the client, and on the
    same machine that takes a processor from whoever computes.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        for data in pieces:
            self.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.writelines(pieces)


def drop_all(state: ServerState) -> None:
    """Close all connections now, whatever is still to be written."""
    for connection in list(state.connections):
        connection.transport.abort()


async def close_all(state: ServerState) -> None:
    """Drop all connections and wait until they and their tasks are gone: an event loop must not close before them."""
    drop_all(state)
    for _ in range(_CLOSING_TURNS):
        if not state.connections and not state.tasks:
            return
        await asyncio.sleep(0.01)


def _protocol(base: str | None) -> type:
    """The protocol over "httptools" or "h11"; None: over httptools where that is installed."""
    if base is None:
        base = "httptools" if find_spec("httptools") else "h11"
    if base == "httptools":
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        return HttpToolsProtocol
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return H11Protocol
