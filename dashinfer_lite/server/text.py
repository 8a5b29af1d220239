"""From a request's prompt or conversation to token ids, in a worker thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dashinfer_lite.server.errors import invalid

if TYPE_CHECKING:
    from dashinfer_lite.llm import LLM
    from dashinfer_lite.server.protocol.chat import Message

MAX_TOKEN_CHARS: Final = 256  # no known vocabulary has longer tokens

# What a template is given by the server itself, or by its folder.
RESERVED: Final = frozenset(
    {"self", "messages", "tools", "tool_choice", "parallel_tool_calls", "add_generation_prompt", "chat_template"}
)


def encode(llm: LLM, text: str, add_special_tokens: bool, param: str) -> list[int]:
    """The ids of a text; ApiError before any work for one that could never fit."""
    check_length(llm, len(text), param)
    return llm.tokenizer.encode(text, add_special_tokens)


def check_length(llm: LLM, characters: int, param: str) -> None:
    """ApiError for a text that has more characters than a full context of the longest tokens."""
    if characters > MAX_TOKEN_CHARS * llm.engine.max_context:
        raise invalid(
            f"{param} has {characters} characters; the context has {llm.engine.max_context} tokens",
            param=param,
            code="context_length_exceeded",
        )


def list_prompts(prompts: str | Sequence[Any], most: int, param: str) -> list[str | list[int]]:
    """A text, texts, ids, or lists of ids as a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    kinds = {type(item) for item in prompts}
    if len(kinds) != 1:
        expected = "a text, a list of texts, a list of token ids, or a list of such lists"
        raise invalid(f"{param} must be {expected}, and not empty", param=param)
    listed = [list(prompts)] if kinds == {int} else list(prompts)
    if len(listed) > most:
        raise invalid(f"{param} has {len(listed)} prompts; at most {most} are allowed", param=param)
    return listed


def encode_prompts(
    llm: LLM, prompts: str | Sequence[Any], most: int, param: str, add_special_tokens: bool = True
) -> list[list[int]]:
    """The ids of each prompt."""
    listed = list_prompts(prompts, most, param)
    ids = [encode(llm, item, add_special_tokens, param) if isinstance(item, str) else item for item in listed]
    if not all(ids):
        raise invalid(f"{param} is empty; it must have at least one token", param=param)
    return ids


def encode_chat(
    llm: LLM, messages: Sequence[Message], add_generation_prompt: bool, **template: Any
) -> tuple[str, list[int]]:
    """The text and the ids of a conversation in the model's chat format."""
    plain = [plain_message(message) for message in messages]
    check_length(llm, sum(_length(message["content"]) for message in plain), "messages")
    return llm.chat_prompt(plain, add_generation_prompt=add_generation_prompt, **template)


def check_variables(variables: Mapping[str, Any]) -> None:
    """ApiError for a variable of the template that a request must not set."""
    for name in variables:
        if name in RESERVED or not name.isidentifier():
            raise invalid(f"chat_template_kwargs cannot set {name!r:.80}", param="chat_template_kwargs")


def plain_message(message: Message) -> dict[str, Any]:
    """A message as templates expect it: no empty fields, and the arguments of calls as objects."""
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(message.content, list):
        plain["content"] = [{"type": "text", "text": part.text} for part in message.content]
    else:
        plain["content"] = message.content if message.content is not None or message.tool_calls else ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "type": "function",
                "id": call.id or "",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def _length(content: str | list[dict[str, str]] | None) -> int:
    if content is None or isinstance(content, str):
        return len(content or "")
    return sum(len(part["text"]) for part in content)


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError):
        return text
