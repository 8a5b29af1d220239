"""Reads tool_call(city='Paris', days=3): keyword arguments that are literals. Nothing is evaluated."""

from __future__ import annotations

import re
from typing import Any, Final

from dashinfer_lite.tools.scan import MAX_DEPTH

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>'[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*")
        |(?P<number>-?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,4})?(?![\w.]))
        |(?P<word>[A-Za-z_]\w{0,200})
        |(?P<mark>[=,:()\[\]{}])
        |(?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[\n'\"\\abfnrtv0])", re.DOTALL)
_ESCAPED: Final = {
    **dict(zip("abfnrtv0", "\a\b\f\n\r\t\v\0", strict=True)),
    **{"\n": "", "'": "'", '"': '"', "\\": "\\"},
}
_WORDS: Final[dict[str, Any]] = {
    **{"True": True, "False": False, "None": None},
    **{"true": True, "false": False, "null": None},  # models mix these up
}


def read_python_call(code: str) -> dict[str, Any] | None:
    """The keyword arguments of a call; None where it is none, or has anything but literals."""
    try:
        return _Reader(code).call()
    except _NotLiteralError:
        return None


class _NotLiteralError(Exception):
    """This is no call with literals."""


class _Reader:
    """One token after the other."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._at = 0
        self._depth = 0
        self._kind, self._token = "", ""
        self._advance()

    def call(self) -> dict[str, Any]:
        self._take("word")
        self._mark("(")
        arguments: dict[str, Any] = {}
        while self._token != ")":
            name = self._take("word")
            self._mark("=")
            if name in arguments:
                raise _NotLiteralError
            arguments[name] = self._value()
            if self._token != ")":
                self._mark(",")
        self._mark(")")
        if self._kind != "end":
            raise _NotLiteralError
        return arguments

    def _value(self) -> Any:
        kind, token = self._kind, self._token
        self._advance()
        if kind == "string":
            return _unescaped(token[1:-1])
        if kind == "number":
            return int(token) if token.lstrip("-").isdigit() else float(token)
        if kind == "word" and token in _WORDS:
            return _WORDS[token]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotLiteralError
        if token == "[":
            value: Any = list(self._items("]"))
        elif token == "(":
            value = list(self._items(")"))
        elif token == "{":
            value = self._pairs()
        else:
            raise _NotLiteralError
        self._depth -= 1
        return value

    def _items(self, closing: str) -> list[Any]:
        items = []
        while self._token != closing:
            items.append(self._value())
            if self._token != closing:
                self._mark(",")
        self._advance()
        return items

    def _pairs(self) -> dict[str, Any]:
        pairs = {}
        while self._token != "}":
            key = self._value()
            if not isinstance(key, str):
                raise _NotLiteralError
            self._mark(":")
            pairs[key] = self._value()
            if self._token != "}":
                self._mark(",")
        self._advance()
        return pairs

    def _mark(self, mark: str) -> None:
        if self._token != mark:
            raise _NotLiteralError
        self._advance()

    def _take(self, kind: str) -> str:
        token = self._token
        if self._kind != kind:
            raise _NotLiteralError
        self._advance()
        return token

    def _advance(self) -> None:
        found = _TOKEN.match(self._code, self._at)
        if found is None:
            raise _NotLiteralError
        self._at = found.end()
        self._kind = found.lastgroup or "end"
        self._token = found[self._kind]


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_character, text)


def _character(found: re.Match[str]) -> str:
    code = found[1]
    if code[0] in "xuU" and len(code) > 1:
        value = int(code[1:], 16)
        return chr(value) if value < 0x110000 else "\ufffd"
    return _ESCAPED[code]
