"""Mistral: [TOOL_CALLS] and a JSON list of calls; or, newer, a name, [ARGS] and the arguments for each call."""

from __future__ import annotations

import re
import secrets
import string
from typing import TYPE_CHECKING, Final

from dashinfer_lite.tools.calls import CallParser, read_call, read_json
from dashinfer_lite.tools.dialect import Dialect
from dashinfer_lite.tools.rules import one_of, quoted, repeated
from dashinfer_lite.tools.scan import JsonEnd, Marker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.tools.definitions import Tool
    from dashinfer_lite.tools.rules import Rules

TAG: Final = "[TOOL_CALLS]"
ARGS: Final = "[ARGS]"
MAX_HEAD: Final = 256
_HEAD: Final = re.compile(r"\s*([\w.-]{1,64})\s*(?:\[CALL_ID\]\s*\w{1,64}\s*)?(?:\[ARGS\]\s*)?", re.ASCII)


class MistralParser(CallParser):
    """Text, and calls after the tag; the kind of a call shows in its first character."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names, _call_id)
        self._tag = Marker(TAG)
        self._json = JsonEnd()

    def _start(self, text: str) -> str:
        self._state = self._free
        return text

    def _free(self, text: str) -> str:
        before, rest = self._tag.find(text)
        self._text(before)
        if rest is None:
            return ""
        self._keep(TAG)
        self._state = self._after_tag
        return rest

    def _after_tag(self, text: str) -> str:
        blanks = len(text) - len(text.lstrip())
        text, blank = text[blanks:], text[:blanks]
        self._keep(blank)
        if self._raw_size > MAX_HEAD:
            self._give_up()
        elif text.startswith("["):
            self._json = JsonEnd("[")
            self._state = self._in_list
        elif text:
            self._state = self._in_head
        return text

    def _in_list(self, text: str) -> str:
        rest, is_complete = self._scan(self._json, text)
        if is_complete:
            values = read_json("".join(self._raw).removeprefix(TAG))
            calls = [read_call(value, self._names) for value in values] if isinstance(values, list) else [None]
            self._emit([call for call in calls if call] if None not in calls else None)
            self._state = self._free
        return rest

    def _in_head(self, text: str) -> str:
        """Name, perhaps an id, and [ARGS], up to the brace that begins the arguments."""
        head, brace, _ = text.partition("{")
        room = MAX_HEAD - self._raw_size
        self._keep(head[:room])
        if len(head) > room:
            self._give_up()
            return text[room:]
        if brace:
            found = _HEAD.fullmatch("".join(self._raw).removeprefix(TAG))
            if found is None or found[1] not in self._names:
                self._give_up()
            else:
                self._name, self._head_size = found[1], self._raw_size
                self._json = JsonEnd()
                self._state = self._in_arguments
        return text[len(head) :]

    def _in_arguments(self, text: str) -> str:
        rest, is_complete = self._scan(self._json, text)
        if is_complete:
            value = {"name": self._name, "arguments": read_json("".join(self._raw)[self._head_size :])}
            call = read_call(value, self._names)
            self._emit([call] if call else None)
            self._state = self._free
        return rest

    def _end(self) -> None:
        self._text(self._tag.flush())


class Mistral(Dialect):
    """A list of calls; with `has_args`, calls one after the other."""

    name = "mistral"
    markers = (TAG, ARGS, "[CALL_ID]")

    def __init__(self, has_args: bool = False) -> None:
        self._has_args = has_args

    def parser(self, names: frozenset[str]) -> CallParser:
        return MistralParser(names)

    def calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        if self._has_args:
            call = rules.add("call", f"{rules.text(TAG)} {_named(rules, tools)}")
            return repeated(call, "", is_parallel)
        return f"{rules.text(TAG)} {_listed(rules, tools, is_parallel)}"

    def text_or_calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        body = _named(rules, tools) if self._has_args else _listed(rules, tools, is_parallel)
        later = rules.after_text(TAG, body)
        return f"{later}* ANYTHING" if is_parallel and self._has_args else f"{later}? ANYTHING"


def _named(rules: Rules, tools: Sequence[Tool]) -> str:
    return one_of(
        [f"{quoted(tool.name)} {rules.text(ARGS)} {rules.arguments(index, tool)}" for index, tool in enumerate(tools)]
    )


def _listed(rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
    calls = [rules.call(index, tool, "arguments") for index, tool in enumerate(tools)]
    call = rules.add("listed_call", one_of(calls))
    return f'" "? "[" {repeated(call, quoted(", "), is_parallel)} "]"'


def _call_id() -> str:
    """The templates of this family refuse ids that are not nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
