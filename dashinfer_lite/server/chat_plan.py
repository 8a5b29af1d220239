"""What a conversation asks of the engine: its prompt, its parameters, and how its answers are taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.protocol.chat import ChosenTool
from dashinfer_lite.server.sampling import sampling_params, submit_options
from dashinfer_lite.server.structure import guided_of
from dashinfer_lite.server.text import check_variables, encode_chat

if TYPE_CHECKING:
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.llm import LLM
    from dashinfer_lite.sampling_params import SamplingParams
    from dashinfer_lite.server.protocol.chat import ChatRequest, Tool
    from dashinfer_lite.server.service import Service
    from dashinfer_lite.tools import OutputParser, ToolPlan


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A conversation that is ready for the engine."""

    text: str
    ids: list[int]
    params: SamplingParams
    options: dict[str, Any]
    tools: ToolPlan

    @classmethod
    async def of(cls, service: Service, body: ChatRequest) -> ChatPlan:
        """Check a request and put its prompt together; ApiError or RequestError says what is wrong with it."""
        params = _params(service, body)
        return await service.prepare(_plan, service.llm, body, params)

    def submit(self, service: Service) -> Request:
        """Queue it."""
        return service.submit(self.ids, self.params, **self.options)

    def parser(self) -> OutputParser:
        """A fresh parser for one answer."""
        return self.tools.parser(self.text)


def _params(service: Service, body: ChatRequest) -> SamplingParams:
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if max_tokens == 0:
        raise invalid("max_tokens must be at least 1", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", param="top_logprobs")
    more: dict[str, Any] = {"max_tokens": max_tokens, "guided": guided_of(body, body.response_format)}
    if body.logprobs:
        more["logprobs"] = body.top_logprobs or 0
    return sampling_params(service, body, **more)


def _plan(llm: LLM, body: ChatRequest, params: SamplingParams) -> ChatPlan:
    """In a worker: templates and grammars take their time, and each has a bound of its own."""
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    check_variables(variables)
    offered, choice = _offered(body)
    tools = llm.plan_tools(
        [msgspec.to_builtins(tool) for tool in offered] or None,
        choice,
        body.parallel_tool_calls is not False,
        **variables,
    )
    text, ids = encode_chat(llm, body.messages, body.add_generation_prompt is not False, **tools.template, **variables)
    params = tools.params(params)
    llm.prepare(params)
    return ChatPlan(text, ids, params, submit_options(body), tools)


def _offered(body: ChatRequest) -> tuple[list[Tool], Any]:
    """The tools that the model is told of, and the choice among them in plain values."""
    tools, choice = list(body.tools or ()), body.tool_choice
    if not isinstance(choice, ChosenTool):
        return tools, choice
    if choice.type == "function":
        if choice.function is None:
            raise invalid("tool_choice of type function needs the field function", param="tool_choice")
        return tools, {"type": "function", "function": {"name": choice.function.name}}
    if choice.allowed_tools is None:
        raise invalid("tool_choice of type allowed_tools needs the field allowed_tools", param="tool_choice")
    wanted = {tool.function.name for tool in choice.allowed_tools.tools}
    known = {tool.function.name for tool in tools}
    if missing := sorted(wanted - known):
        raise invalid(f"tool_choice allows {missing[0]!r:.80}, which is none of the tools", param="tool_choice")
    return [tool for tool in tools if tool.function.name in wanted], choice.allowed_tools.mode
