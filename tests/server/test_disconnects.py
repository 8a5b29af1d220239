"""Clients that leave, and clients that do not read: everything they held comes back."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgi import WEATHER, call
from waiting import WAIT_S, is_idle, wait_until

from dashinfer_lite import LLM, _native
from dashinfer_lite.engine.request import Request
from dashinfer_lite.server.connections import limited_protocol

Make = Callable[..., Any]

STORY: Any = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 12}
REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {**STORY, "stream": True, "n": 2}),
    ("/v1/chat/completions", STORY),
    ("/v1/chat/completions", {**STORY, "stream": True, "tools": [WEATHER], "tool_choice": "required"}),
    ("/v1/completions", {"prompt": ["Long ago", "Once"], "stream": True, "max_tokens": 20, "ignore_eos": True}),
    ("/v1/completions", {"prompt": "a fox and " * 20, "max_tokens": 4, "echo": True, "logprobs": 1}),
    ("/v1/responses", {"input": "Tell me a story.", "stream": True, "max_output_tokens": 12}),
    ("/v1/embeddings", {"input": ["a fox and " * 10] * 2}),
    ("/tokenize", {"prompt": "a fox"}),
)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_leaving_at_any_byte(make_app: Make, llm: LLM, count: int) -> None:
    """Clients leave somewhere in their request or in the answer, several at a time."""
    app = make_app(max_waiting=1000)
    chance = random.Random(7)

    async def visit() -> None:
        path, body = chance.choice(REQUESTS)
        data = json.dumps(body).encode()
        if chance.random() < 0.25:
            reply = await call(app, "POST", path, data, send_only=chance.randrange(len(data)))
            assert reply.status == 0
        else:
            await call(app, "POST", path, data, read_only=chance.choice((0, 1, 200, 1000, 4000)))

    async def visits(count: int) -> None:
        for _ in range(count // 8):
            await asyncio.gather(*(visit() for _ in range(8)))

    asyncio.run(visits(80))
    wait_until(lambda: is_idle(llm))
    before = _held()
    asyncio.run(visits(count))
    wait_until(lambda: is_idle(llm))
    after = _held()
    assert after["threads"] <= before["threads"] and after["files"] <= before["files"]
    assert after["objects"] < before["objects"] + 3000
    assert after["memory"] < before["memory"] + (16 << 20)
    assert not app.state.service.room.backlog() and app.state.service.room._preparing == 0


def test_a_cancel_takes_one_step(make_app: Make, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment a client is known to have left, no more than one step is begun, and then all blocks are free."""
    app = make_app()
    cancelled: list[int] = []
    cancel = Request.cancel

    def counting(request: Request) -> None:
        if not request.is_done:
            cancelled.append(llm.engine.metrics()["steps"])
        cancel(request)

    monkeypatch.setattr(Request, "cancel", counting)
    fields = {"max_tokens": 450, "ignore_eos": True}

    async def leave(path: str, body: dict[str, Any]) -> None:
        gone = asyncio.Event()
        visit = asyncio.ensure_future(call(app, "POST", path, body, gone=gone))
        while not llm.engine.metrics()["running"]:
            await asyncio.sleep(0)
        gone.set()
        await visit

    for stream in (True, False):
        for path, asked in (("/v1/chat/completions", STORY), ("/v1/completions", {"prompt": ["Long ago", "Once"]})):
            for _ in range(3):
                cancelled.clear()
                asyncio.run(leave(path, {**asked, **fields, "stream": stream}))
                wait_until(lambda: is_idle(llm))
                assert cancelled and llm.engine.metrics()["steps"] - cancelled[-1] <= 1


@pytest.mark.parametrize("base", ["httptools", "h11"])
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_over_sockets(make_app: Make, serve_app: Callable[..., str], llm: LLM, base: str, count: int) -> None:
    """Real connections, cut with a reset at random bytes of request and answer, with both of uvicorn's parsers."""
    pytest.importorskip(base)
    app = make_app(max_waiting=1000)
    url = serve_app(app, limited_protocol(base=base))
    port = int(url.rpartition(":")[2])
    chance = random.Random(11)

    def visit() -> None:
        path, body = chance.choice(REQUESTS)
        data = json.dumps(body).encode()
        message = _head(path, len(data)) + data
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if chance.random() < 0.3:
                connection.sendall(message[: chance.randrange(len(message))])
            else:
                connection.sendall(message)
                connection.recv(chance.choice((1, 100, 5000)))

    for _ in range(20):
        visit()
    wait_until(lambda: is_idle(llm))
    before = _held()
    for _ in range(count):
        visit()
    wait_until(lambda: is_idle(llm))
    wait_until(lambda: _held()["files"] <= before["files"])
    after = _held()
    assert after["threads"] <= before["threads"] and after["memory"] < before["memory"] + (16 << 20)
    assert asyncio.run(call(app, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})).status == 200


def test_readers_that_do_not_read(make_app: Make, serve_app: Callable[..., str], llm: LLM) -> None:
    """64 streams whose clients read nothing: the engine finishes its work, and the connections are given up."""
    app = make_app(max_waiting=1000)
    url = serve_app(app, limited_protocol(write_timeout_s=0.5), send_buffer=4096, keep_alive_s=1)
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    many = {"n": 2, "max_tokens": 48, "ignore_eos": True, "stream": True, "logprobs": 20, "temperature": 1}
    data = json.dumps({"prompt": "a", **many}).encode()
    before = _held()
    connections = []
    for _ in range(64):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address)
        connection.sendall(_head("/v1/completions", len(data)) + data)
        connections.append(connection)
    quick = asyncio.run(call(app, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 4}))
    assert quick.status == 200  # nobody waits for those who do not read
    wait_until(lambda: is_idle(llm))
    wait_until(lambda: _held()["files"] <= before["files"] + 64)  # our own ends are still open
    for connection in connections:
        connection.close()
    assert _held()["memory"] < before["memory"] + (64 << 20)


@pytest.mark.parametrize("base", ["httptools", "h11"])
def test_headers_that_do_not_come(make_app: Make, serve_app: Callable[..., str], base: str) -> None:
    """A connection that sends its headers too slowly, or without end, is closed; one that is used is not."""
    pytest.importorskip(base)
    url = serve_app(make_app(), limited_protocol(header_timeout_s=0.2, base=base))
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    late = []
    for sent in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: "):
        late.append(socket.create_connection(address, timeout=WAIT_S))
        late[-1].sendall(sent)
    for connection in late:
        with connection:
            assert _rest(connection) == b""
    endless = serve_app(make_app(), limited_protocol(base=base))
    with socket.create_connection(("127.0.0.1", int(endless.rpartition(":")[2])), timeout=WAIT_S) as connection:
        for _ in range(3):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"}")  # head and body in one packet
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: ")
            while True:
                connection.sendall(b"y" * 4096)
        except OSError:
            assert not _rest(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_come(make_app: Make, serve_app: Callable[..., str]) -> None:
    url = serve_app(make_app(body_timeout_s=0.2))
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=WAIT_S) as connection:
        connection.sendall(_head("/tokenize", 9) + b"{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_many_idle_connections(make_app: Make, serve_app: Callable[..., str]) -> None:
    """A few hundred that say nothing hold up nobody."""
    app = make_app()
    url = serve_app(app)
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    idle = [socket.create_connection(address) for _ in range(200)]
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert _rest(connection).startswith(b"HTTP/1.1 200")
    for one in idle:
        one.close()


def _head(path: str, length: int) -> bytes:
    """The headers of a POST request."""
    lines = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {length}", "", "")
    return "\r\n".join(lines).encode()


def _held() -> dict[str, int]:
    """What the process holds."""
    gc.collect()
    return {
        # Without the server's few preparers, which start when they are first needed and then stay.
        "threads": sum(not thread.name.startswith("dashinfer-prepare") for thread in threading.enumerate()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "objects": len(gc.get_objects()),
        "memory": _native.memory()[0],
    }


def _rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data
