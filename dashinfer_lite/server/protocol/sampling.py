"""The fields of a request that generates: how tokens are drawn, and what is accepted and ignored."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from dashinfer_lite.server.protocol.common import MAX_INT, Count, Name, StreamOptions, TokenId

StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


class Bookkeeping(Struct, kw_only=True, forbid_unknown_fields=True):
    """What clients tell OpenAI about themselves and their account: accepted, and without effect."""

    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None
    verbosity: Any = None


class Structure(Struct, kw_only=True, forbid_unknown_fields=True):
    """The form that an answer must have: exactly one of these."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Sampling(Bookkeeping, kw_only=True, forbid_unknown_fields=True):
    """What chats and completions have in common; see SamplingParams for the meaning of most fields."""

    model: Name | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    bad_words: Annotated[list[StopText], Meta(max_length=64)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Count | None = None
    prompt_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=MAX_INT)] | None = None
    request_id: Annotated[str, Meta(max_length=128, pattern=r"^[\w.:-]+$")] | None = None
    structured_outputs: Structure | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
