"""POST /v1/responses, without state: nothing is stored, and nothing stored can be referred to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dashinfer_lite.server.protocol.chat import TokenLogprob
from dashinfer_lite.server.protocol.common import MAX_INT, Count, Name
from dashinfer_lite.server.protocol.sampling import Bookkeeping, StopText, TopLogprobs

# ---- the request ---------------------------------------------------------------------------------------------------


class InputPart(Struct, kw_only=True):
    """A piece of text that a user wrote, or that an earlier response gave."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal"]
    text: str = ""
    refusal: str = ""


class InputItem(Struct, kw_only=True):
    """A message, a call of the model, what it gave, or thoughts (which are dropped)."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class TextFormat(Struct, kw_only=True):
    """The form of the answer; the schema belongs to json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(Struct, kw_only=True):
    """How the text should be."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponseTool(Struct, kw_only=True):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolReference(Struct, kw_only=True):
    """A tool by its name."""

    name: str
    type: Literal["function"] = "function"


class ResponseToolChoice(Struct, kw_only=True, omit_defaults=True):
    """The one tool to call, or those among which to choose."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ToolReference] | None = None


class Reasoning(Struct, kw_only=True):
    """How much the model should think."""

    effort: Annotated[str, Meta(max_length=16)] | None = None
    summary: Any = None
    generate_summary: Any = None


class ResponseStreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Accepted, and without effect."""

    include_obfuscation: bool | None = None


class ResponseRequest(Bookkeeping, kw_only=True, forbid_unknown_fields=True):
    """A conversation to answer. Without `max_output_tokens` an answer may fill the context."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    model: Name | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    top_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: Any = None
    background: Literal[False] | None = None
    conversation: None = None
    previous_response_id: None = None
    prompt: None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=MAX_INT)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


# ---- the answer ----------------------------------------------------------------------------------------------------

Progress = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """Thoughts."""

    text: str


class OutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: Progress
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputReasoning(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought before."""

    id: str
    status: Progress
    summary: list[Any] = []
    content: list[ReasoningText]


class OutputCall(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the model asks for."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Progress


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Struct, kw_only=True):
    """`cached_tokens` came from the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct, kw_only=True):
    """About how many tokens were thoughts."""

    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Struct, kw_only=True):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Struct, kw_only=True):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Struct, kw_only=True):
    """A response, and what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: Reasoning
    store: Literal[False] = False
    temperature: float
    text: TextOptions
    tool_choice: str | ResponseToolChoice
    tools: list[ResponseTool]
    top_p: float
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: Any = None


# ---- the answer as a stream ----------------------------------------------------------------------------------------


class ResponseEvent(Struct, kw_only=True):
    """An event of a stream; which fields it has depends on its type."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: ResponseObject | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
