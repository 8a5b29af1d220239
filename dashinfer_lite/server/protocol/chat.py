"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dashinfer_lite.server.protocol.common import (
    Count,
    Function,
    JsonObject,
    PlainText,
    PromptLogprobs,
    Usage,
)
from dashinfer_lite.server.protocol.sampling import Sampling, TopLogprobs

# ---- the request ---------------------------------------------------------------------------------------------------


class TextPart(Struct, kw_only=True):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class CalledFunction(Struct, kw_only=True):
    """The function of a call, and its arguments as JSON."""

    name: str
    arguments: str = ""


class ToolCall(Struct, kw_only=True):
    """A call that the model asked for."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Struct, kw_only=True):
    """One message. Fields that clients echo back and that mean nothing to a model are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Tool(Struct, kw_only=True):
    """A function that the model may call."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, kw_only=True):
    """The name of a tool."""

    name: str


class AllowedTool(Struct, kw_only=True):
    """A tool among those that may be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


class AllowedTools(Struct, kw_only=True):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


class ChosenTool(Struct, kw_only=True, forbid_unknown_fields=True):
    """The one tool to call, or those among which to choose."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class NamedSchema(Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON Schema; the answer follows it, strict or not."""

    name: str = "answer"
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchema(Struct, kw_only=True, tag_field="type", tag="json_schema"):
    """A JSON document that follows a schema."""

    json_schema: NamedSchema


ResponseFormat = PlainText | JsonObject | JsonSchema


class ChatRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """A conversation to answer. Without `max_tokens` an answer may fill the context."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Annotated[str, Meta(max_length=16)] | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    web_search_options: None = None


# ---- the answer ----------------------------------------------------------------------------------------------------


class TopLogprob(Struct, kw_only=True):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct, kw_only=True):
    """A token that came, and the most likely ones in its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    """One entry a token of the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class Answer(Struct, kw_only=True):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Struct, kw_only=True):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class Chat(Struct, kw_only=True):
    """The answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


# ---- the answer as a stream ----------------------------------------------------------------------------------------


class FunctionDelta(Struct, kw_only=True):
    """The name of a called function, then pieces of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallPiece(Struct, kw_only=True):
    """A piece of the `index`-th call; the first one has id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class AnswerDelta(Struct, kw_only=True):
    """What is new in an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPiece] | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    """A piece of one answer."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
