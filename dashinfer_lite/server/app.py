"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from dashinfer_lite.server.door import Door
from dashinfer_lite.server.endpoint import Endpoint, json_response
from dashinfer_lite.server.errors import ApiError, as_api_error
from dashinfer_lite.server.guards import Guards
from dashinfer_lite.server.openapi import POSTS, openapi
from dashinfer_lite.server.routes import health, models
from dashinfer_lite.server.service import Service
from dashinfer_lite.server.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

    from dashinfer_lite.llm import LLM

PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
# The page is ours alone: it loads nothing from elsewhere, talks to this server only, and sits in nobody's frame. What a
# model writes can become neither script nor style nor markup: strings of HTML are refused altogether.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(llm: LLM | None = None, settings: Settings | None = None, *, name: str = "model") -> Starlette:
    """An application that serves a model; run it, or mount it in another one.

    Without a model it answers 503 until somebody calls `app.state.service.open(llm)`, in any thread. `name` is what
    clients call the model where neither model nor settings say. The model stays open when the application ends: close
    it where you loaded it.
    """
    settings = settings or Settings()
    service = Service(settings, name if llm is None else llm.name)
    if llm is not None:
        service.open(llm)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    app = Starlette(
        routes=_routes(service),
        middleware=_middleware(service),
        exception_handlers={HTTPException: _routing_error, ApiError: _api_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _routes(service: Service) -> list[Route]:
    gets: dict[str, Callable[[Service], Any]] = {
        "/v1/models": models.models,
        "/health": health.health,
        "/ready": health.ready,
        "/version": health.version,
        "/metrics": health.metrics,
        "/openapi.json": openapi,
    }
    routes = [Route(path, _getter(service, answer), methods=["GET"]) for path, answer in gets.items()]
    routes += [
        Route(path, Endpoint(service, post.request, post.handle), methods=["POST"]) for path, post in POSTS.items()
    ]

    async def model(request: Request) -> Response:
        return json_response(models.model(service, request.path_params["name"]))

    async def page(request: Request) -> Response:
        return _page(request.path_params.get("name", "index.html"))

    return [
        *routes,
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/", page, methods=["GET"]),
        Route("/page/{name}", page, methods=["GET"]),
    ]


def _getter(service: Service, answer: Callable[[Service], Any]) -> Callable[[Request], Any]:
    async def get(request: Request) -> Response:
        found = answer(service)
        return found if isinstance(found, Response) else json_response(found)

    return get


def _page(name: str) -> Response:
    """A file of the chat page, by its plain name."""
    folder = files("dashinfer_lite.server") / "page"
    known = {entry.name: entry for entry in folder.iterdir() if entry.is_file()}
    suffix = "." + name.rpartition(".")[2]
    if name not in known or suffix not in PAGE_TYPES:
        raise ApiError(404, "there is no such page")
    return Response(known[name].read_bytes(), headers={"content-type": PAGE_TYPES[suffix], **PAGE_HEADERS})


def _middleware(service: Service) -> list[Middleware]:
    settings = service.settings
    layers = [Middleware(Guards, settings), Middleware(Door, service, POSTS)]
    if settings.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
        layers.insert(0, cors)
    return layers


async def _routing_error(request: Request, error: Exception) -> Response:
    """404 and 405, in the form of all other errors."""
    assert isinstance(error, HTTPException)
    words = {404: "there is no such path", 405: "this path does not know the method"}
    message = words.get(error.status_code, "the request cannot be served")
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _api_error(request: Request, error: Exception) -> Response:
    return as_api_error(error).response()
