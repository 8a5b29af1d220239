"""The server as a process, and applications in threads of this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from waiting import WAIT_S, wait_until


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of `dashinfer-lite serve` over the demo model, which has to end cleanly."""
    command = [sys.executable, "-P", "-m", "dashinfer_lite.cli", "serve", "--port", "0", "--threads", "2", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as server:
        try:
            assert server.stdout is not None
            yield next(line.split()[1] for line in server.stdout if line.startswith("  page"))
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0


@contextmanager
def serving_apps() -> Iterator[Callable[..., str]]:
    """A function that runs an application with uvicorn, in a thread, and gives its URL."""
    import uvicorn

    from dashinfer_lite.server.connections import close_all, limited_protocol

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            await close_all(self.server_state)

    running: list[tuple[Any, threading.Thread]] = []

    def serve(app: Any, protocol: Any = None, send_buffer: int = 0, keep_alive_s: int = 5) -> str:
        bound = socket.socket()
        if send_buffer:  # connections inherit it
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        http = protocol or limited_protocol()
        config = uvicorn.Config(
            app, http=http, ws="none", log_config=None, timeout_graceful_shutdown=5, timeout_keep_alive=keep_alive_s
        )
        server = Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running.append((server, thread))
        wait_until(lambda: server.started)
        return f"http://127.0.0.1:{port}"

    try:
        yield serve
    finally:
        for server, thread in running:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive()
