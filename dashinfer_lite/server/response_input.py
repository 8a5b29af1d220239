"""A request for a response as one for a chat: the same plan serves both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.protocol.chat import (
    AllowedTool,
    AllowedTools,
    CalledFunction,
    ChatRequest,
    ChosenTool,
    JsonSchema,
    Message,
    NamedFunction,
    NamedSchema,
    Tool,
    ToolCall,
)
from dashinfer_lite.server.protocol.common import Function, JsonObject

if TYPE_CHECKING:
    from dashinfer_lite.server.protocol.responses import InputItem, InputPart, ResponseRequest

LOGPROBS = "message.output_text.logprobs"
SAME = (
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed", "stream",
    "parallel_tool_calls", "cache_salt", "priority", "chat_template_kwargs",
)  # fmt: skip


def chat_request(body: ResponseRequest) -> ChatRequest:
    """The chat that a response answers; ApiError for items that make no conversation."""
    wants_logprobs = LOGPROBS in (body.include or ())
    return ChatRequest(
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs or None,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        tools=_tools(body),
        tool_choice=_choice(body),
        response_format=_format(body),
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        **{name: getattr(body, name) for name in SAME},
    )


def _messages(body: ResponseRequest) -> list[Message]:
    messages = [Message(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, Message(role="user", content=body.input)]
    for at, item in enumerate(body.input):
        _add(messages, item, f"input[{at}]")
    if not messages:
        raise invalid("input holds no message", param="input")
    return messages


def _add(messages: list[Message], item: InputItem, where: str) -> None:
    """Append an item; calls in a row belong to one message of the assistant."""
    if item.type == "message":
        if item.role is None:
            raise invalid(f"{where} has no role", param=where)
        messages.append(Message(role=item.role, content=_text(item.content)))
    elif item.type == "function_call":
        if item.name is None or item.call_id is None:
            raise invalid(f"{where}: a function_call needs name and call_id", param=where)
        call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments or ""))
        if messages and messages[-1].role == "assistant":
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
        else:
            messages.append(Message(role="assistant", tool_calls=[call]))
    elif item.type == "function_call_output":
        if item.call_id is None:
            raise invalid(f"{where}: a function_call_output needs call_id", param=where)
        messages.append(Message(role="tool", tool_call_id=item.call_id, content=_text(item.output)))


def _text(content: str | Sequence[InputPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal for part in content)


def _tools(body: ResponseRequest) -> list[Tool] | None:
    if not body.tools:
        return None
    return [
        Tool(
            function=Function(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            )
        )
        for tool in body.tools
    ]


def _choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    if choice.type == "function":
        if choice.name is None:
            raise invalid("tool_choice of type function needs a name", param="tool_choice")
        return ChosenTool(type="function", function=NamedFunction(name=choice.name))
    allowed = [AllowedTool(function=NamedFunction(name=tool.name)) for tool in choice.tools or ()]
    return ChosenTool(type="allowed_tools", allowed_tools=AllowedTools(mode=choice.mode or "auto", tools=allowed))


def _format(body: ResponseRequest) -> JsonObject | JsonSchema | None:
    wanted = body.text.format if body.text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonObject()
    if wanted.schema is None:
        raise invalid("text.format of type json_schema needs a schema", param="text.format.schema")
    return JsonSchema(json_schema=NamedSchema(name=wanted.name, schema=wanted.schema, strict=wanted.strict))
