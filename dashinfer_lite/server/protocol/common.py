"""Objects that several endpoints share."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

MAX_INT: Final = 2**31 - 1

Count = Annotated[int, Meta(ge=1, le=MAX_INT)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT)]
Name = Annotated[str, Meta(max_length=512)]


class ErrorBody(Struct, kw_only=True):
    """What went wrong, and with which parameter."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Struct, kw_only=True):
    """Every answer that is not 2xx."""

    error: ErrorBody


class PromptTokensDetails(Struct, kw_only=True):
    """`cached_tokens` of the prompt came from the prefix cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(Struct, kw_only=True):
    """`reasoning_tokens` of the answer came before its text."""

    reasoning_tokens: int = 0


class Usage(Struct, kw_only=True):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """`include_usage`: a last chunk has the counts; `continuous_usage_stats`: so has every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class PromptLogprob(Struct, kw_only=True):
    """A token that stands, or could stand, in the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class Function(Struct, kw_only=True):
    """What a tool is called, what for, and the JSON Schema of its arguments."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class JsonObject(Struct, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class PlainText(Struct, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class ModelCard(Struct, kw_only=True):
    """A model that is served; prompt and answer have at most `max_model_len` tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dashinfer-lite"
    max_model_len: int


class ModelList(Struct, kw_only=True):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
