"""A POST route: read the body, answer it, and stop the work when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dashinfer_lite.server.body import read_body
from dashinfer_lite.server.errors import as_api_error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from dashinfer_lite.server.service import Service

T = TypeVar("T", bound=msgspec.Struct)


class Endpoint(Generic[T]):
    """An ASGI application for one path.

    `handle` gets the body as `kind` and gives an object to encode, or a Response. It is cancelled within one turn of
    the event loop when the client disconnects, and cleans up as any coroutine does.
    """

    def __init__(self, service: Service, kind: type[T], handle: Callable[[Service, T], Awaitable[Any]]) -> None:
        self._service = service
        self._kind = kind
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        service = self._service
        try:
            service.check_open()
            body = await read_body(request, self._kind, service.settings.max_body, service.settings.body_timeout_s)
        except ClientDisconnect:
            service.metrics.disconnects.inc()
            return
        except Exception as error:
            await as_api_error(error).response()(scope, receive, send)
            return
        work = asyncio.ensure_future(self._respond(body, scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                service.metrics.disconnects.inc()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _respond(self, body: T, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._handle(self._service, body)
        except Exception as error:
            answer = as_api_error(error, self._service.folder).response()
        response = answer if isinstance(answer, Response) else json_response(answer)
        await response(scope, receive, send)


def json_response(answer: msgspec.Struct) -> Response:
    """An object as JSON."""
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _disconnected(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
