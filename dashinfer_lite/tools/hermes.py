"""Qwen 2.5, Qwen 3 and Hermes: a JSON object between <tool_call> and </tool_call>."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashinfer_lite.tools.calls import CallParser, call_id, read_call, read_json
from dashinfer_lite.tools.dialect import Dialect
from dashinfer_lite.tools.rules import one_of, quoted, repeated
from dashinfer_lite.tools.scan import Expected, JsonEnd, Marker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.tools.definitions import Tool
    from dashinfer_lite.tools.rules import Rules

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"


class HermesParser(CallParser):
    """Text, and calls anywhere in it."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names, call_id)
        self._opening = Marker(OPEN)

    def _start(self, text: str) -> str:
        self._state = self._free
        return text

    def _free(self, text: str) -> str:
        before, rest = self._opening.find(text)
        self._text(before)
        if rest is None:
            return ""
        self._keep(OPEN)
        self._json, self._closing = JsonEnd(), Expected(CLOSE)
        self._body: str | None = None
        self._state = self._in_body
        return rest

    def _in_body(self, text: str) -> str:
        rest, is_complete = self._scan(self._json, text)
        if is_complete:
            self._body = "".join(self._raw)[len(OPEN) :]
            self._state = self._after_body
        return rest

    def _after_body(self, text: str) -> str:
        rest, is_complete = self._scan(self._closing, text)
        if is_complete:
            self._take_call()
        return rest

    def _take_call(self) -> None:
        call = read_call(read_json(self._body or ""), self._names)
        self._emit([call] if call else None)
        self._state = self._free

    def _end(self) -> None:
        if self._state == self._after_body:  # the model stopped before the closing tag
            self._take_call()
        self._text(self._opening.flush())


class Hermes(Dialect):
    """Each call in its own pair of tags."""

    name = "hermes"
    markers = (OPEN, CLOSE)

    def parser(self, names: frozenset[str]) -> CallParser:
        return HermesParser(names)

    def calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        call = rules.add("call", f"{rules.text(OPEN)} {_body(rules, tools)} {rules.text(CLOSE)}")
        return repeated(call, quoted("\n"), is_parallel)

    def text_or_calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        later = rules.after_text(OPEN, f"{_body(rules, tools)} {rules.text(CLOSE)}")
        return f"{later}* ANYTHING" if is_parallel else f"{later}? ANYTHING"


def _body(rules: Rules, tools: Sequence[Tool]) -> str:
    return one_of([rules.call(index, tool, "arguments", "\n", "\n") for index, tool in enumerate(tools)])
