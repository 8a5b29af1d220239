"""Llama 3.1 and later: the answer is a JSON object with name and parameters, perhaps after <|python_tag|>."""

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

TAG: Final = "<|python_tag|>"


class Llama3Parser(CallParser):
    """Calls at the beginning of the answer or after the tag, and further ones after a semicolon."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names, call_id)
        self._tag = Marker(TAG)
        self._json = JsonEnd()

    def _start(self, text: str) -> str:
        """A call may begin, with an opening brace; anything else is text."""
        blanks = len(text) - len(text.lstrip())
        self._text(text[:blanks])
        if blanks == len(text):
            return ""
        if text[blanks] == "{":
            self._json = JsonEnd()
            self._state = self._in_json
        else:
            self._state = self._free
        return text[blanks:]

    def _free(self, text: str) -> str:
        before, rest = self._tag.find(text)
        self._text(before)
        if rest is None:
            return ""
        self._keep(TAG)
        self._json = JsonEnd()
        self._state = self._in_json
        return rest

    def _in_json(self, text: str) -> str:
        rest, is_complete = self._scan(self._json, text)
        if is_complete:
            body = "".join(self._raw).removeprefix(TAG)
            call = read_call(read_json(body), self._names)
            if self._emit([call] if call else None):
                self._semicolon = Expected(";")
                self._state = self._after_call
        return rest

    def _after_call(self, text: str) -> str:
        """A semicolon, or text; the semicolon is shown where no call follows it."""
        rest, is_complete = self._scan(self._semicolon, text)
        if is_complete:
            self._json = JsonEnd()
            self._state = self._in_next
        return rest

    def _in_next(self, text: str) -> str:
        rest, is_complete = self._scan(self._json, text)
        if is_complete:
            _, _, body = "".join(self._raw).partition(";")
            call = read_call(read_json(body), self._names)
            if self._emit([call] if call else None):
                self._semicolon = Expected(";")
                self._state = self._after_call
        return rest

    def _end(self) -> None:
        self._text(self._tag.flush())


class Llama3(Dialect):
    """One call, or several with semicolons between them."""

    name = "llama3"
    markers = (TAG,)

    def parser(self, names: frozenset[str]) -> CallParser:
        return Llama3Parser(names)

    def calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        return repeated(_call(rules, tools), quoted("; "), is_parallel)

    def text_or_calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        text = rules.add("PROSE", r"/[^{ \t\r\n](.|\n)*/")
        return f"{self.calls(rules, tools, is_parallel)} | {text}"


def _call(rules: Rules, tools: Sequence[Tool]) -> str:
    return rules.add("call", one_of([rules.call(index, tool, "parameters") for index, tool in enumerate(tools)]))
