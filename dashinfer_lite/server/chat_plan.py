"""What a conversation asks of the engine: its prompt, its parameters, and how its answers are taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashinfer_lite.server.assistant import PlainText
from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.protocol.chat import ChosenTool
from dashinfer_lite.server.sampling import sampling_params, submit_options
from dashinfer_lite.server.text import encode_chat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.sampling_params import SamplingParams
    from dashinfer_lite.server.assistant import Parser
    from dashinfer_lite.server.protocol.chat import ChatRequest, Message, Tool
    from dashinfer_lite.server.service import Service


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A conversation that has been checked."""

    messages: Sequence[Message]
    tools: Sequence[Tool]
    variables: dict[str, Any]
    add_generation_prompt: bool
    params: SamplingParams
    options: dict[str, Any]

    @classmethod
    def of_chat(cls, service: Service, body: ChatRequest) -> ChatPlan:
        """Check a request; ApiError or RequestError says what is wrong with it."""
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if max_tokens == 0:
            raise invalid("max_tokens must be at least 1", param="max_tokens")
        more: dict[str, Any] = {"max_tokens": max_tokens}
        if body.logprobs:
            more["logprobs"] = body.top_logprobs or 0
        variables = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", body.reasoning_effort)
        return cls(
            body.messages,
            tools_of(body),
            variables,
            body.add_generation_prompt is not False,
            sampling_params(service, body, **more),
            submit_options(body),
        )

    async def submit(self, service: Service) -> Request:
        """Put the prompt together in a worker and queue the request."""
        ids = await service.prepare(
            encode_chat, service.llm, self.messages, self.tools, self.variables, self.add_generation_prompt
        )
        return service.submit(ids, self.params, **self.options)

    def parser(self, service: Service) -> Parser:
        """A fresh parser for one answer."""
        return PlainText()


def tools_of(body: ChatRequest) -> list[Tool]:
    """The tools that the model is told of."""
    tools, choice = list(body.tools or ()), body.tool_choice
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("two tools have the same name", param="tools")
    if choice is None or choice in ("none", "auto"):
        return [] if choice == "none" else tools
    if not tools:
        raise invalid("tool_choice needs tools", param="tool_choice")
    wanted = names
    if isinstance(choice, ChosenTool):
        if choice.type == "function" and choice.function is not None:
            wanted = [choice.function.name]
        elif choice.type == "allowed_tools" and choice.allowed_tools is not None:
            wanted = [tool.function.name for tool in choice.allowed_tools.tools]
        else:
            raise invalid(f"tool_choice of type {choice.type} needs the field {choice.type}", param="tool_choice")
    for name in wanted:
        if name not in names:
            raise invalid(f"tool_choice names {name!r:.80}, which is none of the tools", param="tool_choice")
    return [tool for tool in tools if tool.function.name in wanted]
