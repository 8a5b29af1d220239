"""Running the application: listening, loading beside it, draining at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import uvicorn

from dashinfer_lite.errors import CancelledError
from dashinfer_lite.server.connections import close_all, drop_all, limited_protocol

if TYPE_CHECKING:
    from types import FrameType

    from starlette.applications import Starlette

    from dashinfer_lite.llm import LLM
    from dashinfer_lite.server.service import Service

log = logging.getLogger("dashinfer_lite.server")

LAST_WORDS_S: Final = 2  # for telling clients that their requests were cancelled
LAST_RESORT_S: Final = 30  # then uvicorn cancels whatever goes on without a connection

# Loads the model; it asks now and then whether to go on.
Load = Callable[[Callable[[], bool]], "LLM"]


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port that is taken is an error before anything is loaded; port 0: any."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def serve(
    app: Starlette,
    bound: socket.socket,
    load: Load,
    on_ready: Callable[[LLM], object],
    *,
    drain_s: int = 30,
    access_log: bool = False,
) -> int:
    """Answer requests until a signal ends it; returns the exit code. Call it in the main thread.

    The model is loaded while health checks are answered already. The first SIGTERM or SIGINT drains: nothing new is
    taken in, and what goes on may finish within `drain_s` seconds. The second one aborts. What made loading fail is
    raised.
    """
    server = _Server(app, drain_s, access_log)
    failures: list[Exception] = []
    loader = threading.Thread(target=_load, args=(server, load, on_ready, failures), name="dashinfer-load", daemon=True)
    server.on_started = loader.start
    server.run(sockets=[bound])
    if loader.ident is not None:
        loader.join()
    if server.llm is not None:
        server.llm.close()
    if failures:
        raise failures[0]
    return server.exit_code


class _Server(uvicorn.Server):
    """uvicorn's server with a second signal that aborts, whichever of the two it is."""

    def __init__(self, app: Starlette, drain_s: int, access_log: bool) -> None:
        config = uvicorn.Config(
            app,
            http=limited_protocol(),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=access_log,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=drain_s + LAST_RESORT_S,
        )
        super().__init__(config)
        self.service: Service = app.state.service
        self.llm: LLM | None = None
        self.exit_code = 0
        self._drain_s = drain_s
        self.on_started: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second one drops all connections."""
        self.service.drain()
        if self.should_exit:
            self.exit_code = 128 + sig
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._drop_connections)
        self.should_exit = True

    def _drop_connections(self) -> None:
        drop_all(self.server_state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining: %d connections", len(self.server_state.connections))
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(self._drain_s, self.service.abort),
            loop.call_later(self._drain_s + LAST_WORDS_S, self._drop_connections),  # nobody has to read them
        ]
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()
        await close_all(self.server_state)
        if self.force_exit:  # then uvicorn leaves it out
            await self.lifespan.shutdown()


def _load(server: _Server, load: Load, on_ready: Callable[[LLM], object], failures: list[Exception]) -> None:
    try:
        server.llm = load(lambda: not server.should_exit)
        server.service.open(server.llm)
        on_ready(server.llm)
    except CancelledError:
        log.info("loading was cancelled")
    except Exception as error:
        failures.append(error)
        server.service.failure = str(error)
        server.handle_exit(signal.SIGTERM, None)
