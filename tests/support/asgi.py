"""An HTTP client inside the process: it calls an ASGI application directly, and may leave at any byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WAIT_S = 120  # only a hang reaches it

# What the demo model is asked in tests, and what it says.
SUM = "17 + 25 = 42"
STORY = "Tell me a story about a fox."
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass
class Reply:
    """What came back, as far as it was read."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, whose form is checked."""
        found = self.json
        assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}
        assert found["error"]["message"] and found["error"]["type"]
        return dict(found["error"])

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event; comments are left out."""
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert self.body.endswith(b"\n\n")
        blocks = self.body.decode().removesuffix("\n\n").split("\n\n")
        lines = [[line for line in block.split("\n") if not line.startswith(":")] for block in blocks]
        return [line.removeprefix("data: ") for block in lines for line in block if line.startswith("data: ")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events of a stream that ends as OpenAI's do."""
        assert self.events[-1] == "[DONE]"
        return [json.loads(data) for data in self.events[:-1]]


async def call(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    send_only: int | None = None,
    read_only: int | None = None,
    gone: asyncio.Event | None = None,
) -> Reply:
    """One request; `body` is an object for JSON, or bytes.

    The client leaves after `send_only` bytes of its body, when it has read `read_only` bytes of the answer, or when
    `gone` is set.
    """
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named = {"host": "localhost", "content-type": "application/json", "content-length": str(len(data))}
    named |= {name.lower(): value for name, value in (headers or {}).items()}
    gone = gone or asyncio.Event()
    to_send = [data] if send_only is None else [data[:send_only]]
    reply = Reply()

    async def receive() -> dict[str, Any]:
        if to_send:
            return {"type": "http.request", "body": to_send.pop(), "more_body": send_only is not None}
        if send_only is None:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            reply.body += message.get("body", b"")
            reply.is_complete = not message.get("more_body", False)
        if read_only is not None and len(reply.body) >= read_only:
            gone.set()
            await asyncio.sleep(0)

    target, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": target,
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "state": {},
    }
    async with asyncio.timeout(WAIT_S):
        await app(scope, receive, send)
    return reply


class Client:
    """Calls from a test that is no coroutine; each call has an event loop of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def get(self, path: str, **options: Any) -> Reply:
        return asyncio.run(call(self.app, "GET", path, **options))

    def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        return asyncio.run(call(self.app, "POST", path, body, **options))

    def chat(self, text: str = "What is 17 + 25?", **fields: Any) -> Reply:
        """A conversation of one message, answered greedily unless the fields say otherwise."""
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})

    def complete(self, prompt: Any = "Long ago there lived a fox", **fields: Any) -> Reply:
        """A text to continue, greedily unless the fields say otherwise."""
        return self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
