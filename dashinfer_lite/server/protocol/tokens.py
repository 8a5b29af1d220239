"""POST /tokenize and /detokenize, and the small objects of GET endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dashinfer_lite.server.protocol.chat import Message, Tool
from dashinfer_lite.server.protocol.common import Name, TokenId


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """A `prompt`, or `messages` in the model's chat format."""

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    model: Name | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class Tokens(Struct, kw_only=True):
    """The token ids of a text; `token_strs` as the vocabulary spells them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | UnsetType = UNSET


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids whose text is wanted, special tokens included."""

    tokens: list[TokenId]
    model: Name | None = None


class Text(Struct, kw_only=True):
    """The text of token ids."""

    prompt: str


class Status(Struct, kw_only=True):
    """Whether the server is there for requests."""

    status: Literal["ok", "ready"]


class Version(Struct, kw_only=True):
    """The version of the package."""

    version: str
