"""Errors as OpenAI's clients know them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import re
import secrets
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import Response

from dashinfer_lite.errors import CancelledError, CapacityError, DashInferError, RequestError
from dashinfer_lite.server.protocol.common import ErrorBody, ErrorReply

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("dashinfer_lite.server")

TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
}


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def reply(self) -> ErrorReply:
        """The body."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return ErrorReply(error=ErrorBody(message=self.message, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        body = msgspec.json.encode(self.reply)
        return Response(body, self.status, self.headers, media_type="application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be served as asked."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: Exception, folder: str = "") -> ApiError:
    """What a client may know of an error.

    The words of a RequestError were written for whoever sent the request; the name of the model's folder is taken out.
    Everything else is told by a number that the log explains.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        message = str(error).replace(f"{folder}: ", "").replace(folder, "the model") if folder else str(error)
        return invalid(message, param=_named_param(message), code=_code(message))
    if isinstance(error, CapacityError):
        return ApiError(429, str(error), code="server_overloaded", headers={"Retry-After": "1"})
    if isinstance(error, CancelledError):
        return ApiError(503, "the request was cancelled by the server", code="cancelled")
    number = secrets.token_hex(6)
    log.error("error %s", number, exc_info=error)
    if isinstance(error, DashInferError):
        return ApiError(500, f"the model failed to answer (error {number})", code="model_failed")
    return ApiError(500, f"the server made a mistake (error {number})", code="internal_error")


def _named_param(message: str) -> str | None:
    """The parameter that a message begins with, as in "temperature is 3; …"."""
    found = re.match(r"([a-z_]+)(?:\[\d+\])* (?:is|has|must|cannot|names)\b", message)
    return found[1] if found else None


def _code(message: str) -> str | None:
    return "context_length_exceeded" if message.startswith("the prompt has ") else None
