"""More requests than there is room for: bounded queues, honest hints, and no loss of work."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from asgi import call
from waiting import WAIT_S

from dashinfer_lite import LLM
from dashinfer_lite.outputs import Timings
from dashinfer_lite.server.errors import ApiError
from dashinfer_lite.server.openapi import POSTS
from dashinfer_lite.server.overload import PrefillRate, WaitingRoom, retry_after_s

Make = Callable[..., Any]


@dataclass
class Waiting:
    """A request as the waiting room sees it."""

    tokens: int
    status: str = "queued"
    timings: Timings = field(default_factory=Timings)

    @property
    def prompt_token_ids(self) -> list[int]:
        return [0] * self.tokens

    def leave(self, queue_s: float) -> None:
        self.status, self.timings = "prefilling", Timings(queue_s=queue_s)


def room(clock: list[float], **limits: Any) -> WaitingRoom:
    bounds = {"max_requests": 4, "max_tokens": 100, "max_wait_s": 60.0, **limits}
    return WaitingRoom(**bounds, clock=lambda: clock[0])


def refusal(action: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        action()
    assert caught.value.status == 429 and caught.value.code == "server_overloaded"
    assert caught.value.reply.error.type == "rate_limit_error"
    return caught.value


def test_the_rate_is_that_of_prompts_while_others_wait() -> None:
    """100 tokens every 2 seconds; pauses in which nobody waited do not count, nor does the first of a busy time."""
    rate = PrefillRate()
    rate.left(0.0, 0.001, 1000)
    assert rate.tokens_per_s is None
    for i in range(1, 20):
        rate.left(0.0, 2.0 * i + 0.001, 100)
    assert rate.tokens_per_s == pytest.approx(50)
    rate.left(1000.0, 1000.1, 7)
    assert rate.tokens_per_s == pytest.approx(50)
    for _ in range(3):  # together in one step, after half a second; two of them count to what follows
        rate.left(1000.0, 1000.6, 10)
    assert rate.tokens_per_s == pytest.approx(50 + 0.2 * (20 - 50))
    rate.left(1000.0, 1001.6, 50)
    assert rate.tokens_per_s == pytest.approx(44 + 0.2 * (70 - 44))


def test_bounds_by_number_and_tokens() -> None:
    clock = [0.0]
    waiting = room(clock)
    waiting.admit(10_000)  # who comes alone gets in, however long the prompt
    requests = [Waiting(40), Waiting(40)]
    for request in requests:
        waiting.admit(request.tokens)
        waiting.enter(request)  # type: ignore[arg-type]
    assert "80 prompt tokens" in refusal(lambda: waiting.admit(21)).message
    waiting.admit(20)
    with waiting.preparation(), waiting.preparation():
        assert "4 requests wait" in refusal(waiting.preparation().__enter__).message
    assert waiting.refused == {"requests": 1, "tokens": 1, "wait": 0}
    requests[0].leave(1.0)
    assert waiting.backlog() == 40
    requests[1].status = "cancelled"
    assert waiting.backlog() == 0


def test_bounds_by_time() -> None:
    """With a measured rate nobody is let in to wait longer than is allowed."""
    clock = [0.0]
    waiting = room(clock, max_requests=100, max_tokens=10**6, max_wait_s=5.0)
    requests = [Waiting(100) for _ in range(30)]
    for request in requests:
        waiting.enter(request)  # type: ignore[arg-type]
    for i, request in enumerate(requests[:20]):
        request.leave(float(i + 1))
    assert waiting.backlog() == 1000 and waiting.rate.tokens_per_s == pytest.approx(100)
    told = refusal(lambda: waiting.admit(1))
    assert 8 <= int(told.headers["Retry-After"]) <= 12 and 8000 <= int(told.headers["retry-after-ms"]) <= 12000
    for request in requests[20:26]:
        request.leave(21.0)
    waiting.admit(1)


def test_the_hint() -> None:
    """Backlog over rate, spread by a fifth, from 1 to 60 seconds."""
    hints = [retry_after_s(2000, 100.0) for _ in range(200)]
    assert 16 <= min(hints) < 18 and 22 < max(hints) <= 24
    assert retry_after_s(10, 1e9) == 1 and retry_after_s(10**9, 1.0) == 60
    assert {retry_after_s(0, None) >= 1 for _ in range(50)} == {True}


def test_a_refusal_costs_little(make_app: Make, serve_app: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in the body: it is neither parsed nor prepared, and the connection serves the next request."""
    app = make_app(max_waiting=2, max_waiting_tokens=50)
    service = app.state.service
    url = urlsplit(serve_app(app))
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=WAIT_S)

    def status(body: bytes, method: str = "POST", path: str = "/v1/completions") -> int:
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert status(b"{") == 400
    own_end = connection.sock
    for waiting in ([Waiting(40), Waiting(1)], [Waiting(50)]):  # too many; too many tokens
        for one in waiting:
            service.room.enter(one)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(service, "prepare", None)
            for body in (b"{", b'{"prompt": "x"}', b"\xff" * 3_000_000, b'{"tokens": [1]}'):
                assert [status(body, path=path) for path in POSTS] == [429] * len(POSTS)
        assert status(b"", "GET", "/health") == 200 and status(b"", "GET", "/v1/completions") == 405
        for one in waiting:
            one.status = "cancelled"
    assert status(b'{"prompt": "x", "max_tokens": 1}') == 200
    assert connection.sock is own_end
    connection.close()


def test_what_comes_before_a_refusal(make_app: Make) -> None:
    """Keys, limits and the end of the server; whoever leaves is told nothing."""
    app = make_app(max_waiting=1, max_body=100, api_keys=("k",), body_timeout_s=0.05)
    key = {"Authorization": "Bearer k"}
    app.state.service.room.enter(Waiting(1))

    def status(body: bytes, headers: Any, **options: Any) -> int:
        return asyncio.run(call(app, "POST", "/v1/completions", body, headers=headers, **options)).status

    assert status(b"{}", key) == 429
    assert status(b"{}", {}) == 401
    assert status(b"x" * 101, key) == 413
    assert status(b"{}", key, send_only=1) == 0
    assert asyncio.run(_slow(app, key)) == 408
    app.state.service.drain()
    assert status(b"{}", key) == 503


async def _slow(app: Any, headers: dict[str, str]) -> int:
    """The answer to a request whose body does not end."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": raw}
    await app(scope, receive, send)
    return statuses[0]


def test_twice_the_capacity(make_app: Make, llm: LLM) -> None:
    """Eight run, eight wait, the others are told when to come back; then everybody who was let in is answered."""
    app = make_app(max_waiting=8)
    body = {"prompt": "Long ago", "max_tokens": 40, "ignore_eos": True}

    async def storm() -> list[Any]:
        return await asyncio.gather(*(call(app, "POST", "/v1/completions", body) for _ in range(40)))

    replies = asyncio.run(storm())
    served = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert len(served) + len(refused) == 40 and len(served) >= 8 and refused
    assert all(reply.json["usage"]["completion_tokens"] == 40 for reply in served)
    for reply in refused:
        assert 1 <= int(reply.headers["retry-after"]) <= 60 and int(reply.headers["retry-after-ms"]) >= 1000
        assert reply.error["code"] == "server_overloaded"
    assert sum(app.state.service.room.refused.values()) == len(refused)
    assert asyncio.run(call(app, "POST", "/v1/completions", body)).status == 200


def test_goodput_at_twice_the_capacity(make_app: Make) -> None:
    """Clients that come back when they are told to: all work gets done, and nothing of it twice."""
    app = make_app(max_waiting=8)
    body = {"prompt": "Long ago", "max_tokens": 16, "ignore_eos": True}

    async def persistent() -> int:
        tries = 1
        while (await call(app, "POST", "/v1/completions", body)).status == 429:
            tries += 1
            await asyncio.sleep(0.01)  # impatient: the hint is at least a second
        return tries

    async def storm() -> list[int]:
        return await asyncio.gather(*(persistent() for _ in range(40)))

    before = app.state.service.llm.engine.metrics()
    tries = asyncio.run(storm())
    after = app.state.service.llm.engine.metrics()
    assert after["generated_tokens"] - before["generated_tokens"] == 40 * 16
    assert after["requests"] - before["requests"] == 40 and max(tries) > 1


def test_health_is_answered_meanwhile(make_app: Make) -> None:
    app = make_app()
    body = {"prompt": "Long ago", "max_tokens": 60, "ignore_eos": True}

    async def storm() -> None:
        work = [asyncio.ensure_future(call(app, "POST", "/v1/completions", body)) for _ in range(16)]
        checks = 0
        while not all(task.done() for task in work):
            assert (await call(app, "GET", "/health")).status == 200
            checks += 1
            await asyncio.sleep(0.001)
        assert checks > 10
        assert {(await task).status for task in work} == {200}

    asyncio.run(storm())
