"""Reading a request's body: bounded, typed, and with errors that name the parameter."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect

from dashinfer_lite.server.errors import ApiError, invalid

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive

T = TypeVar("T", bound=msgspec.Struct)


async def read_body(request: Request, kind: type[T], limit: int, timeout_s: float) -> T:
    """The JSON object of a request; ApiError for one that is no JSON, too large, too slow, or not of the type."""
    check_media_type(request)
    try:
        async with asyncio.timeout(timeout_s):
            data = await _bytes(request, limit)
    except TimeoutError:
        raise _too_slow(timeout_s) from None
    return decode(data, kind)


async def drop_body(receive: Receive, limit: int, timeout_s: float) -> None:
    """Let a body arrive and forget it: a client that is still sending may not hear what it is told."""
    size, more = 0, True
    try:
        async with asyncio.timeout(timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                size += len(message.get("body", b""))
                if size > limit:
                    raise _too_large(limit)
                more = message.get("more_body", False)
    except TimeoutError:
        raise _too_slow(timeout_s) from None


def decode(data: bytes | bytearray, kind: type[T]) -> T:
    """A typed object; ApiError says what is wrong and with which parameter."""
    try:
        decoded: T = _decoder(kind).decode(data)
        return decoded
    except msgspec.ValidationError as error:
        raise _bad_value(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not valid JSON: {_plain(str(error))}", code="invalid_json") from None
    except RecursionError:
        raise invalid("the body is nested too deeply", code="invalid_json") from None


def check_media_type(request: Request) -> None:
    """ApiError 415 unless a body says that it is plain JSON.

    Forms are refused although their bytes might be JSON: a browser sends them from any page without asking first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be JSON, with the header Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not accepted; send the JSON as it is")


async def _bytes(request: Request, limit: int) -> bytearray:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise _too_large(limit)
    return data


def _too_slow(timeout_s: float) -> ApiError:
    return ApiError(408, f"the body did not arrive within {timeout_s:g} seconds")


def _too_large(limit: int) -> ApiError:
    # What is still on its way is not read, so the connection cannot be used again.
    return ApiError(413, f"the body is larger than {limit} bytes", headers={"Connection": "close"})


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _bad_value(message: str) -> ApiError:
    """What a message of msgspec says, such as "Expected `int`, got `str` - at `$.n`"."""
    what, path = _parted(message)
    for kind, code in (("unknown", "unknown_parameter"), ("missing required", "missing_parameter")):
        found = re.search(rf"{kind} field `(.{{0,64}})", what, re.DOTALL)
        if found is not None:
            param = ".".join(filter(None, [path, found[1].removesuffix("`")]))
            return invalid(f"{kind.split()[0]} parameter: {param}", param=param, code=code)
    return invalid(f"{path or 'the body'}: {_plain(what)}", param=path or None, code="invalid_value")


def _parted(message: str) -> tuple[str, str]:
    """What is wrong, and where: "stop[0]" of "… - at `$.stop[0]`"."""
    what, mark, where = message.rpartition(" - at ")
    found = re.search(r"`\$\.?([^`]*)`$", where)
    return (what, found[1]) if mark and found else (message, "")


def _plain(text: str) -> str:
    text = text.replace("`", "")
    return text[:1].lower() + text[1:]
