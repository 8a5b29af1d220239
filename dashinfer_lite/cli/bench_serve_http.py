"""A small HTTP client on asyncio's streams: it must cost little beside the server that it measures."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from dashinfer_lite.errors import DashInferError, RequestError

MAX_ERROR: Final = 300  # characters of a server's words that are passed on


class HttpError(Exception):
    """An answer that is not 200, or none; `status` is 0 where there is none."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status} {words}" if status else words)
        self.status = status


class Server:
    """A server by its URL. Each request has a connection of its own."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        """RequestError for what is no URL of HTTP; a path that ends in /v1 may be given, too."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise RequestError(f"--url {url}: expected an address such as http://127.0.0.1:8000")
        self.url = url
        self._host = host
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = port or (443 if self._ssl else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        named = f"[{host}]" if ":" in host else host
        self._headers = f"Host: {named}:{self._port}\r\nConnection: close\r\nAccept: */*\r\n"
        if key:
            if not key.isascii() or not key.isprintable():
                raise RequestError("--api-key has characters that no header can carry")
            self._headers += f"Authorization: Bearer {key}\r\n"

    async def first_model(self) -> str:
        """The name of the first model that the server lists; DashInferError where it lists none."""
        try:
            listed = await self.ask("GET", "/v1/models")
            return str(listed["data"][0]["id"])
        except HttpError as error:
            raise DashInferError(f"{self.url}: {error}") from None
        except (LookupError, TypeError):
            raise DashInferError(f"{self.url}: the answer to GET /v1/models is no list of models") from None

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer; HttpError for anything but 200 with JSON."""
        async with self._open(method, path, body) as pieces:
            data = b"".join([piece async for piece in pieces])
        try:
            return json.loads(data)
        except ValueError:
            raise HttpError(0, "the answer is no JSON") from None

    async def stream(self, path: str, body: Any) -> AsyncIterator[Any]:
        """The objects of a stream of events, up to [DONE]; HttpError for an error event, or an end without [DONE].

        The body is read to its end: a server may take who leaves before for somebody who has lost patience.
        """
        is_done = False
        async with self._open("POST", path, body) as pieces:
            rest = b""
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:") or is_done:
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        is_done = True
                        continue
                    event = _decoded(data)
                    if "error" in event:
                        raise HttpError(200, _words(data))
                    yield event
        if not is_done:
            raise HttpError(0, "the stream ended without [DONE]")

    @asynccontextmanager
    async def _open(self, method: str, path: str, body: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of an answer with status 200, in the pieces in which it comes."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._ssl)
                writer.write(head.encode() + b"\r\n" + data)
                status, headers = await _head(reader)
                pieces = _body(reader, headers)
                if status != 200:
                    raise HttpError(status, _words(b"".join([piece async for piece in pieces])))
                yield pieces
        except TimeoutError:
            raise HttpError(0, f"no end within {self._timeout_s:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            words = str(error) or type(error).__name__
            raise HttpError(0, words if isinstance(error, OSError) else f"the answer broke off: {words}") from None
        finally:
            if writer is not None:
                writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    line = await reader.readline()
    parts = line.split(maxsplit=2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise ValueError("this is not HTTP" if line else "the server closed the connection")
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(parts[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


def _decoded(data: bytes) -> dict[str, Any]:
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError("an event is no object")
    return event


def _words(data: bytes) -> str:
    """What an error says, as far as it is one of OpenAI's."""
    try:
        found = json.loads(data)["error"]
        words = found["message"] if isinstance(found, dict) else found
    except (ValueError, LookupError, TypeError):
        words = data.decode("utf-8", "replace")
    return " ".join(str(words).split())[:MAX_ERROR] or "no words"
