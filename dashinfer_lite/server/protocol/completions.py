"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dashinfer_lite.server.protocol.common import PromptLogprobs, TokenId, Usage
from dashinfer_lite.server.protocol.sampling import Sampling, TopLogprobs

# A text, texts, token ids, or lists of token ids; that a list does not mix them is seen when it is taken apart.
Prompts = str | list[str | TokenId | list[TokenId]]


class CompletionRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """Texts to continue. `max_tokens` is 16 unless given; 0 is for `echo`, which returns the prompt as well."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


class CompletionLogprobs(Struct, kw_only=True):
    """One entry a token; the first token of an echoed prompt has no log probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, kw_only=True):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """The answers to all prompts, or with `stream` a piece of one of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
