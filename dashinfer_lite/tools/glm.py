"""GLM-4 and ChatGLM3: the name of the tool on a line, then its arguments: JSON, or a Python call in a code block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.tools.calls import CallParser, call_id, read_json, written_arguments
from dashinfer_lite.tools.dialect import Dialect
from dashinfer_lite.tools.python_call import read_python_call
from dashinfer_lite.tools.rules import one_of, quoted, repeated
from dashinfer_lite.tools.scan import Expected, JsonEnd, Marker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.tools.definitions import Tool
    from dashinfer_lite.tools.rules import Rules

ROLE: Final = "<|assistant|>"
FENCE: Final = "```"
LANGUAGE: Final = "python"
MAX_LINE: Final = 80  # of a name, and some blanks


class GlmParser(CallParser):
    """A call begins the answer, or follows another call or the marker of a role."""

    def __init__(self, names: frozenset[str], in_python: bool) -> None:
        super().__init__(names, call_id)
        self._in_python = in_python
        self._role = Marker(ROLE)
        self._name = ""

    def _start(self, text: str) -> str:
        """The line with the name."""
        if not self._raw_size:
            blanks = len(text) - len(text.lstrip())
            self._text(text[:blanks])
            text = text[blanks:]
        line, newline, rest = text.partition("\n")
        room = MAX_LINE - self._raw_size
        self._keep(line[:room])
        if len(line) > room:
            self._give_up()
            return text[room:]
        if not newline:
            return ""
        name = "".join(self._raw).removeprefix(ROLE).strip()
        if name not in self._names:
            self._give_up()
            return newline + rest
        self._keep(newline)
        self._name = name
        self._head_size = self._raw_size
        if self._in_python:
            self._fence, self._state = Expected(FENCE + LANGUAGE), self._at_fence
        else:
            self._json, self._state = JsonEnd(), self._in_json
        return rest

    def _free(self, text: str) -> str:
        before, rest = self._role.find(text)
        self._text(before)
        if rest is None:
            return ""
        self._keep(ROLE)
        self._state = self._start
        return rest

    def _in_json(self, text: str) -> str:
        rest, is_complete = self._scan(self._json, text)
        if is_complete:
            self._take(read_json("".join(self._raw)[self._head_size :]))
        return rest

    def _at_fence(self, text: str) -> str:
        rest, is_complete = self._scan(self._fence, text)
        if is_complete:
            self._head_size = self._raw_size
            self._code, self._state = _CodeEnd(), self._in_code
        return rest

    def _in_code(self, text: str) -> str:
        rest, is_complete = self._scan(self._code, text)
        if is_complete:
            self._take(read_python_call("".join(self._raw)[self._head_size :].removesuffix(FENCE)))
        return rest

    def _take(self, arguments: Any) -> None:
        written = written_arguments(arguments)
        if self._emit([(self._name, written)] if written is not None else None):
            self._state = self._next

    def _next(self, text: str) -> str:
        """After a call: perhaps the marker of a role, perhaps the next name at once."""
        text = text.lstrip()
        if not text:
            return ""
        self._state = self._free if text[0] == ROLE[0] else self._start
        return text

    def _end(self) -> None:
        self._text(self._role.flush())


class _CodeEnd:
    """Finds the fence that ends a block of code."""

    def __init__(self) -> None:
        self._marker = Marker(FENCE)

    def feed(self, text: str) -> tuple[int, bool | None]:
        _, rest = self._marker.find(text)
        return (len(text), None) if rest is None else (len(text) - len(rest), True)


class Glm4(Dialect):
    """Name, newline, JSON."""

    name = "glm4"
    markers = (ROLE,)

    def parser(self, names: frozenset[str]) -> CallParser:
        return GlmParser(names, in_python=False)

    def calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        lines = [quoted(f"{tool.name}\n") for tool in tools]
        calls = [f"{line} {rules.arguments(index, tools[index])}" for index, line in enumerate(lines)]
        return repeated(rules.add("call", one_of(calls)), rules.text(ROLE), is_parallel)

    def text_or_calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        return f"{self.calls(rules, tools, is_parallel)} | {_prose(rules)}"


class ChatGlm3(Dialect):
    """Name, newline, and tool_call(…) in Python."""

    name = "chatglm3"
    markers = (ROLE,)

    def parser(self, names: frozenset[str]) -> CallParser:
        return GlmParser(names, in_python=True)

    def calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        calls = [_python_call(rules, index, tool) for index, tool in enumerate(tools)]
        return repeated(rules.add("call", one_of(calls)), rules.text(ROLE), is_parallel)

    def text_or_calls(self, rules: Rules, tools: Sequence[Tool], is_parallel: bool) -> str:
        return f"{self.calls(rules, tools, is_parallel)} | {_prose(rules)}"


def _prose(rules: Rules) -> str:
    """Text that is no call: in this family a newline says so at the beginning of the answer."""
    return rules.add("PROSE", r"/\n(.|\n)*/")


def _python_call(rules: Rules, index: int, tool: Tool) -> str:
    """The arguments by name, the required ones first; their values are JSON, which the parser reads as well."""
    given = {name: schema for name, schema in _properties(tool).items() if schema is not False and _is_name(name)}
    needed = [name for name in given if name in tool.parameters.get("required", ())]
    others = [name for name in given if name not in needed]
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    spelled = {}
    for number, name in enumerate(given):
        schema = given[name] if isinstance(given[name], dict) else {}
        rule = rules.arguments(1000 * (index + 1) + number, tool, {**schema, **shared})
        spelled[name] = f"{quoted(name + '=')} {rule}"
    comma = quoted(", ")
    if needed:
        body = f" {comma} ".join(spelled[name] for name in needed)
        body += "".join(f" ({comma} {spelled[name]})?" for name in others)
    else:
        body = one_of(_any_of(rules, index, [spelled[name] for name in others])) + "?" if others else ""
    begin, end = quoted(f"{tool.name}\n ```python\ntool_call("), quoted(")\n```")
    return f"{begin} {body} {end}"


def _any_of(rules: Rules, index: int, arguments: Sequence[str]) -> list[str]:
    """At least one of several arguments in their order, with commas: one alternative for each that may be the first."""
    tail, found = "", []
    for number, argument in reversed(list(enumerate(arguments))):
        found.append(f"{argument} {tail}".strip())
        more = f'(", " {argument})? {tail}'.strip()
        tail = rules.add(f"more_{index}_{number}", more)
    return found[::-1]


def _properties(tool: Tool) -> dict[str, Any]:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier()
