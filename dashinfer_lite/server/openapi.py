"""GET /openapi.json, made from the types of requests and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from dashinfer_lite import __version__
from dashinfer_lite.server.protocol.chat import Chat, ChatChunk, ChatRequest
from dashinfer_lite.server.protocol.common import ErrorReply, ModelCard, ModelList
from dashinfer_lite.server.protocol.completions import Completion, CompletionRequest
from dashinfer_lite.server.protocol.embeddings import EmbeddingReply, EmbeddingRequest
from dashinfer_lite.server.protocol.responses import ResponseEvent, ResponseObject, ResponseRequest
from dashinfer_lite.server.protocol.tokens import (
    DetokenizeRequest,
    Status,
    Text,
    TokenizeRequest,
    Tokens,
    Version,
)
from dashinfer_lite.server.routes.chat import chat
from dashinfer_lite.server.routes.completions import complete
from dashinfer_lite.server.routes.embeddings import embed
from dashinfer_lite.server.routes.responses import respond
from dashinfer_lite.server.routes.tokens import detokenize, tokenize
from dashinfer_lite.server.service import Service


class Post(NamedTuple):
    """An endpoint that takes a JSON object: what it does, takes, gives, and gives with `stream`."""

    summary: str
    handle: Callable[[Service, Any], Awaitable[Any]]
    request: type[msgspec.Struct]
    reply: type[msgspec.Struct]
    event: type[msgspec.Struct] | None = None


POSTS: Final[dict[str, Post]] = {
    "/v1/chat/completions": Post("Answer a conversation", chat, ChatRequest, Chat, ChatChunk),
    "/v1/completions": Post("Continue texts", complete, CompletionRequest, Completion, Completion),
    "/v1/responses": Post("Answer, statelessly", respond, ResponseRequest, ResponseObject, ResponseEvent),
    "/v1/embeddings": Post("Vectors of texts", embed, EmbeddingRequest, EmbeddingReply),
    "/tokenize": Post("Token ids of a text or a conversation", tokenize, TokenizeRequest, Tokens),
    "/detokenize": Post("Text of token ids", detokenize, DetokenizeRequest, Text),
}

_GETS: Final[dict[str, tuple[str, type[msgspec.Struct]]]] = {
    "/v1/models": ("The models that are served", ModelList),
    "/v1/models/{name}": ("One of them", ModelCard),
    "/health": ("Whether the process is alive", Status),
    "/ready": ("Whether requests are served", Status),
    "/version": ("The version", Version),
}

_POST_ERRORS: Final = ("400", "404", "408", "413", "415", "429", "503")
_REF: Final = "#/components/schemas/{name}"


def openapi(service: Service) -> Response:
    """The document; it is the same for every server of this version."""
    return Response(_document(), media_type="application/json")


@cache
def _document() -> bytes:
    types: list[type[msgspec.Struct]] = [ErrorReply]
    types += [kind for _, kind in _GETS.values()]
    for post in POSTS.values():
        types += [kind for kind in (post.request, post.reply, post.event) if kind is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, Any] = {}
    for path, post in POSTS.items():
        paths[path] = {"post": _post(post)}
    for path, (summary, kind) in _GETS.items():
        errors = ("503",) if path in ("/health", "/ready") else ("404", "503")
        paths[path] = {"get": {"summary": summary, "responses": {"200": _content(kind), **_errors(*errors)}}}
        if "{name}" in path:
            name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            paths[path]["get"]["parameters"] = [name]
    text = {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": {"summary": "Measurements", "responses": {"200": text}}}
    document = {
        "openapi": "3.2.0",
        "info": {"title": "DashInfer Lite", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }
    return msgspec.json.encode(document)


def _post(post: Post) -> dict[str, Any]:
    answer = _content(post.reply)
    if post.event is not None:
        answer["content"]["text/event-stream"] = {"itemSchema": _event(post.event)}
    return {
        "summary": post.summary,
        "description": post.request.__doc__,
        "requestBody": {"required": True, **_json(post.request)},
        "responses": {"200": answer, **_errors(*_POST_ERRORS)},
    }


def _event(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A server-sent event: its data is the object as JSON, or the word that ends a stream."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(kind)}
    properties = {"event": {"type": "string"}, "data": {"anyOf": [data, {"const": "[DONE]"}]}}
    return {"type": "object", "properties": properties, "required": ["data"]}


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"description": (kind.__doc__ or "").strip().splitlines()[0], **_json(kind)}


def _json(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": _ref(kind)}}}


def _ref(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: _content(ErrorReply) for status in ("401", "403", "500", *statuses)}
