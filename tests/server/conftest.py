"""The demo model behind the application, in the process and behind a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgi import Client
from devtools import Browser, find_chromium
from waiting import WAIT_S, is_idle, wait_until

pytest.importorskip("dashinfer_lite._native", reason="the package was not built")
for extra in ("starlette", "uvicorn", "msgspec", "prometheus_client", "llguidance"):
    pytest.importorskip(extra, reason="needs the extra server")

from dashinfer_lite import LLM  # noqa: E402 — after what may be missing
from dashinfer_lite.server import Settings, create_app  # noqa: E402


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The demo model with a context of 512 tokens, and eight sequences at once."""
    with LLM(kv_memory="24MiB", max_context=512, max_batch=8, threads=2) as model:
        yield model


@pytest.fixture
def make_app(llm: LLM) -> Iterator[Callable[..., Any]]:
    """Makes applications over the model, or over the one that is given."""
    made: list[Any] = []

    def make(model: LLM | None = llm, **settings: Any) -> Any:
        made.append(create_app(model, Settings(**settings)))
        return made[-1]

    yield make
    for app in made:
        app.state.service.close()
    wait_until(lambda: is_idle(llm))


@pytest.fixture
def client(make_app: Callable[..., Any]) -> Client:
    """A client of an application with default settings."""
    return Client(make_app())


@pytest.fixture
def serve_app() -> Iterator[Callable[..., str]]:
    """Runs applications with uvicorn, each in a thread; gives their URL."""
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

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of the page; each opens a tab with storage of its own."""
    path = find_chromium()
    if path is None:
        pytest.skip("needs chromium (apt install chromium)")
    with Browser(path, tmp_path_factory.mktemp("profile")) as found:
        yield found
