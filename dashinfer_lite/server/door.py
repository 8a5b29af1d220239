"""Turning away whom there is no place for, before anything is made of the request."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from dashinfer_lite.server.body import drop_body
from dashinfer_lite.server.guards import own_path

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from dashinfer_lite.server.service import Service


class Door:
    """The ASGI layer behind the guards. Saying no must cost little, as it takes time from those who were let in.

    So a request that is refused finds no route and becomes no object: its body is read past, and the connection stays.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str]) -> None:
        """`paths` are those whose POST requests want to wait."""
        self._app = app
        self._service = service
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        if scope["type"] != "http" or scope["method"] != "POST" or own_path(scope) not in self._paths:
            await self._app(scope, receive, send)
            return
        refusal = None if service.is_draining else service.room.refusal()
        if refusal is None:
            await self._app(scope, receive, send)
            return
        try:
            await drop_body(receive, service.settings.max_body, service.settings.body_timeout_s)
        except ClientDisconnect:
            service.metrics.disconnects.inc()
            return
        await refusal.response()(scope, receive, send)
