"""Tools in the form of GLM-4 and ChatGLM3: listed in a system message; names stand beside roles.

The two sentences, and the shapes around them, are those that the models were trained on.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RequestError
from .call_messages import with_call_objects

Message = Mapping[str, Any]

_CHATGLM3 = "Answer the following questions as best as you can. You have access to the following tools:"
_GLM4 = "在调用上述函数时，请使用 Json 格式表示调用参数。"


def with_tools(name: str, messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """Return messages with the tools in front, for the chat format of that name: "ChatGLM3" or "GLM-4"."""
    functions = [tool.get("function", tool) if isinstance(tool, Mapping) else tool for tool in tools]
    if name == "ChatGLM3":
        text = f"{_CHATGLM3}\n{_json(functions, 4)}"
    else:
        listed = [f"## {_name(one)}\n\n{_json(one, 4)}\n{_GLM4}" for one in functions]
        text = "\n\n".join(["# 可用工具", *listed])
    if not messages:
        return []
    first = messages[0] if isinstance(messages[0], Mapping) else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def as_turns(messages: Sequence[Message], in_python: bool = False) -> list[Message]:
    """Return messages whose calls are turns of their own, with the tool's name as metadata, and results observations.

    `in_python`: a call's arguments are written as ChatGLM3 does, else as JSON.
    """
    turns: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        if isinstance(message, Mapping) and message.get("role") == "tool":
            turns.append({**message, "role": "observation"})
        elif isinstance(calls, list | tuple) and calls:
            if message.get("content"):
                turns.append({"role": message.get("role"), "content": message["content"]})
            for call in with_call_objects(message)["tool_calls"]:
                function = call.get("function", call) if isinstance(call, Mapping) else {}
                turns.append(
                    {
                        "role": message.get("role"),
                        "metadata": function.get("name", ""),
                        "content": _arguments(function.get("arguments", {}), in_python),
                    }
                )
        else:
            turns.append(message)
    return turns


def _arguments(arguments: Any, in_python: bool) -> str:
    if not in_python or not isinstance(arguments, Mapping):
        return arguments if isinstance(arguments, str) else _json(arguments)
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f" ```python\ntool_call({written})\n```"


def _json(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"tools and their arguments must be JSON: {error!s:.200}") from None


def _name(function: Any) -> str:
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""
