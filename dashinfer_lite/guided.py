"""What an answer must look like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from dashinfer_lite.errors import RequestError

MAX_SOURCE: Final = 64 * 1024
"""Most characters of a schema, an expression, or of all choices together."""

MAX_GRAMMAR: Final = 256 * 1024
"""Most characters of a grammar; one that forces tool calls holds the schemas of all tools."""

MAX_CHOICES: Final = 5000


@dataclass(frozen=True, slots=True)
class Guided:
    """What an answer must look like; exactly one of these is set, else RequestError.

    json_object    True: any JSON object
    json_schema    a JSON value that this schema (a dict, or its text) accepts; properties come in the schema's order
    regex          a text that this expression matches as a whole; Rust's syntax, without look-around
    choice         one of these texts
    grammar        a text of this Lark grammar, in llguidance's dialect

    The answer is complete when the grammar says so. Only what else ends an answer, such as max_tokens or a stop
    string, can cut it short.
    """

    json_object: bool = False
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise RequestError(f"guided takes exactly one of {names}; this has {', '.join(given) or 'none of them'}")
        checked = _CHECKS[given[0]](given[0], getattr(self, given[0]))
        object.__setattr__(self, given[0], checked)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Guided:
        """Make it of plain values; RequestError for a name that it does not have."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise RequestError(f"{name!r:.40} is nothing that guides an answer; there are {', '.join(known)}")
        return cls(**values)

    @property
    def kind(self) -> str:
        """The name of what is set."""
        return next(field.name for field in fields(self) if getattr(self, field.name) not in (None, False))


def _json_object(name: str, value: object) -> bool:
    if value is not True:
        raise _bad(name, value, "True or False")
    return True


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _bad(name, value, "a text that is not empty")
    return _sized(name, value, MAX_GRAMMAR if name == "grammar" else MAX_SOURCE)


def _json_schema(name: str, value: object) -> str:
    """The schema as text, with its properties in their order: hashable, and always the same for the same schema."""
    expected = "a JSON schema: a dict, or the text of one"
    try:
        if isinstance(value, str):
            value = json.loads(_sized(name, value))
        if not isinstance(value, Mapping):
            raise _bad(name, value, expected)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_dict)
    except RequestError:
        raise
    except RecursionError:
        raise RequestError(f"{name} is nested too deeply, or holds itself") from None
    except (ValueError, TypeError) as error:
        raise RequestError(f"{name} is no valid JSON: {error!s:.200}") from None
    return _sized(name, text)


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _choice(name: str, value: object) -> tuple[str, ...]:
    expected = f"a list of 1 to {MAX_CHOICES} different texts, none of them empty"
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise _bad(name, value, expected)
    choices = tuple(value)
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise _bad(name, value, expected)
    if not 1 <= len(choices) <= MAX_CHOICES or len(set(choices)) < len(choices):
        raise _bad(name, value, expected)
    _sized(name, "".join(choices))
    return choices


def _sized(name: str, text: str, most: int = MAX_SOURCE) -> str:
    if len(text) > most:
        raise RequestError(f"{name} has {len(text)} characters; at most {most} are accepted")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} is not valid Unicode: a lone surrogate at position {error.start}") from None
    return text


def _bad(name: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{name} is {value!r:.80}; it must be {expected}")


_CHECKS: Final = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _text,
    "choice": _choice,
    "grammar": _text,
}
