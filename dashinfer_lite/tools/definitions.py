"""The tools that a model is offered, and whether it must use them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dashinfer_lite.errors import RequestError
from dashinfer_lite.grammar.schema import check_schema

MAX_TOOLS: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: its name, the JSON schema of its arguments, and whether calls must follow that to the letter."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether calls may or must come, and of which tool alone; "named" is "required" with a name."""

    mode: str  # "none", "auto" or "required"
    name: str | None = None


def checked_tools(tools: object) -> tuple[Tool, ...]:
    """The tools of a list in OpenAI's form; RequestError says what is wrong with which."""
    if tools is None:
        return ()
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list, not {type(tools).__name__}")
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"there are {len(tools)} tools; at most {MAX_TOOLS} are accepted")
    checked = [_checked_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [tool.name for tool in checked]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"there are several tools with the name {name!r}")
    return tuple(checked)


def checked_choice(choice: object, tools: Sequence[Tool]) -> Choice:
    """A tool_choice in OpenAI's form: "none", "auto", "required", or an object that names a tool."""
    if choice is None:
        return Choice("auto" if tools else "none")
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or name not in [tool.name for tool in tools]:
            raise RequestError(f"tool_choice names {name!r:.80}; it must name one of the tools")
        return Choice("required", str(name))
    if not isinstance(choice, str) or choice not in ("none", "auto", "required"):
        raise RequestError(f'tool_choice is {choice!r:.80}; it must be "none", "auto", "required", or name a function')
    if choice == "required" and not tools:
        raise RequestError('tool_choice is "required", and there are no tools')
    return Choice(choice)


def _checked_tool(tool: object, where: str) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise RequestError(f'{where} must be an object like {{"type": "function", "function": {{"name": …}}}}')
    function = tool["function"]
    name, parameters, strict = function.get("name"), function.get("parameters"), function.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where}: the name is {name!r:.80}; it must be 1 to 64 letters, digits, '_', '-' or '.'")
    if strict not in (None, True, False):
        raise RequestError(f"{where}: strict is {strict!r:.80}; it must be true or false")
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise RequestError(f"{where}: parameters must be a JSON schema, an object, not {type(parameters).__name__}")
    try:
        plain = json.loads(json.dumps(parameters, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where}: parameters is no JSON: {error!s:.200}") from None
    if strict:
        try:
            check_schema(plain)
        except RequestError as error:
            raise RequestError(f"{where}: parameters: {error}") from None
    return Tool(name, plain, bool(strict))
