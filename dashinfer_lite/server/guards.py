"""What stands before every route: limits, keys, hosts, and errors that tell nothing they should not."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.server.errors import ApiError, as_api_error, log

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dashinfer_lite.server.settings import Settings

# Whoever watches a server, and whoever opens its page, has no key yet.
OPEN_PATHS: Final = frozenset({"/", "/health", "/ready"})
OPEN_FOLDERS: Final = ("/page/",)


class Guards:
    """The outermost ASGI layer. It looks at what was sent, never at a URL put together from headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._max_headers = settings.max_headers
        self._hosts = settings.allowed_hosts
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        named = _request_id(headers)
        started = False

        async def named_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", named)]}
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive, named_send)
        except Exception as error:
            answer = as_api_error(error)
            if started:
                log.error("a response broke off: %s", answer.message)
                return
            await answer.response()(scope, receive, named_send)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._max_headers:
            raise ApiError(431, f"the headers are larger than {self._max_headers} bytes")
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            raise ApiError(403, "this host name is not served; allow it with --allow-host", code="unknown_host")
        if self._keys and not is_open(own_path(scope)) and scope["method"] != "OPTIONS":
            self._check_key(headers.get(b"authorization", b""))

    def _check_key(self, authorization: bytes) -> None:
        """ApiError 401 unless one of the keys is given; takes the same time for every wrong one."""
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer …",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_open(path: str) -> bool:
    """Whether a path can be had without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def own_path(scope: Scope) -> str:
    """The path inside this application, which may be mounted under another one's."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] or "/" if root and path.startswith(root) else path


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def _host_name(host: bytes) -> str:
    """The host without its port; an IPv6 address keeps its brackets, and what is no host and port stays whole."""
    text = host.decode("latin-1").lower()
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d*)?", text)
    return found[1] if found else text


def _request_id(headers: dict[bytes, bytes]) -> bytes:
    given: Any = headers.get(b"x-request-id", b"")
    if 0 < len(given) <= 128 and given.replace(b"-", b"").replace(b"_", b"").isalnum():
        return bytes(given)
    return secrets.token_hex(16).encode()
