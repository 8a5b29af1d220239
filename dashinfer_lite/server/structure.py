"""What a request says about the form of its answer, as Guided. It is enforced or refused, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashinfer_lite.errors import RequestError
from dashinfer_lite.guided import Guided
from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.protocol.chat import JsonSchema
from dashinfer_lite.server.protocol.common import JsonObject

if TYPE_CHECKING:
    from dashinfer_lite.server.protocol.chat import ResponseFormat
    from dashinfer_lite.server.protocol.sampling import Sampling


def guided_of(body: Sampling, response_format: ResponseFormat | None = None) -> Guided | None:
    """The one structure that a request asks for; ApiError where it asks for two."""
    asked = {**_structured(body), **_legacy(body), **_formatted(response_format)}
    if len(asked) > 1:
        first, second = list(asked)[:2]
        raise invalid(f"{first} and {second} cannot both be given", param=second)
    return next(iter(asked.values()), None)


def _structured(body: Sampling) -> dict[str, Guided]:
    if body.structured_outputs is None:
        return {}
    given = body.structured_outputs
    kinds: dict[str, Any] = {
        "json_schema": given.json,
        "regex": given.regex,
        "choice": given.choice,
        "grammar": given.grammar,
        "json_object": given.json_object,
    }
    return {"structured_outputs": _guided("structured_outputs", {k: value for k, value in kinds.items() if value})}


def _legacy(body: Sampling) -> dict[str, Guided]:
    given: dict[str, tuple[str, Any]] = {
        "guided_json": ("json_schema", body.guided_json),
        "guided_regex": ("regex", body.guided_regex),
        "guided_choice": ("choice", body.guided_choice),
        "guided_grammar": ("grammar", body.guided_grammar),
    }
    return {name: _guided(name, {kind: value}) for name, (kind, value) in given.items() if value is not None}


def _formatted(response_format: ResponseFormat | None) -> dict[str, Guided]:
    if isinstance(response_format, JsonObject):
        return {"response_format": Guided(json_object=True)}
    if isinstance(response_format, JsonSchema):
        schema = response_format.json_schema.schema
        if schema is None:
            return {"response_format": Guided(json_object=True)}
        return {"response_format": _guided("response_format", {"json_schema": schema})}
    return {}


def _guided(param: str, fields: dict[str, Any]) -> Guided:
    try:
        return Guided(**fields)
    except RequestError as error:
        raise invalid(f"{param}: {error}", param=param) from None
