"""Brings a model's folder and plans of tool use together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dashinfer_lite.errors import RequestError
from dashinfer_lite.tools import ToolPlan
from dashinfer_lite.tools.detect import find_dialect, thinks
from dashinfer_lite.tools.reasoning import OPEN

if TYPE_CHECKING:
    from dashinfer_lite.text import Conversations, Tokenizer

_PROBE = [{"role": "user", "content": "?"}]


def plan_tools(
    chat: Conversations,
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None,
    parallel_tool_calls: bool,
    template: Mapping[str, Any],
) -> ToolPlan:
    """How a conversation uses tools with this model; RequestError says what is wrong."""
    source = chat.template_source
    return ToolPlan(
        find_dialect(source, tokenizer.kind),
        tools,
        tool_choice,
        parallel_tool_calls,
        special=lambda name: _special_id(tokenizer, name),
        thinks=thinks(source),
        thinks_at_once=thinks(source) and _opens_thoughts(chat, template),
    )


def _special_id(tokenizer: Tokenizer, name: str) -> int | None:
    token = tokenizer.token_to_id(name)
    return token if token in tokenizer.special_ids else None


def _opens_thoughts(chat: Conversations, template: Mapping[str, Any]) -> bool:
    """Whether prompts end inside of thoughts: a short conversation shows it."""
    try:
        return chat.render(_PROBE, **template).rstrip().endswith(OPEN)
    except RequestError:
        return False
