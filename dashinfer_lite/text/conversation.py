"""Conversations: the prompt that a model folder's template, or its family's own format, makes of messages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RequestError
from .chat import ChatTemplate, Message, checked_messages
from .chat_formats import ChatFormat, Turn, family_format
from .tokenizer import Tokenizer
from .tool_turns import as_turns, with_tools


class Conversations:
    """How a folder writes conversations; without template and format it can only say so."""

    def __init__(self, template: ChatTemplate, chat_format: ChatFormat | None, tokenizer: Tokenizer | None) -> None:
        self._template = template
        self._format = chat_format
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None) -> "Conversations":
        """Read a folder's templates; its family's format stands in where it has none. ModelError where they are broken.

        The formats of ChatGLM come before a template, whose text cannot write their frames and role tokens.
        """
        template = ChatTemplate.load(folder)
        own = None if tokenizer is None else family_format(Path(folder), tokenizer)
        if own is not None and template.available and not own.always:
            own = None
        return cls(template, own, tokenizer)

    @property
    def available(self) -> bool:
        """Whether conversations can be written at all."""
        return self._format is not None or self._template.available

    @property
    def name(self) -> str | None:
        """What writes them: "template", a family's format by its name, or None."""
        if self._format is not None:
            return self._format.name
        return "template" if self._template.available else None

    @property
    def template_source(self) -> str:
        """The templates that write them, one after the other; empty where a family's format does."""
        return self._template.sources if self._format is None else ""

    def render(self, messages: Sequence[Message], **template: Any) -> str:
        """Return a conversation's text; errors and further arguments are those of `ChatTemplate.render`."""
        if self._format is None:
            return self._template.render(messages, **template)
        return self._format.render(_turns(self._format.name, messages, template), _is_answered(template))

    def prompt(self, messages: Sequence[Message], **template: Any) -> tuple[str, list[int]]:
        """Return a conversation's text and its token ids."""
        text = self.render(messages, **template)
        if self._tokenizer is None:
            raise RequestError("the model has no tokenizer; give prompts as token ids")
        if self._format is None:
            return text, self._tokenizer.encode(text, add_special_tokens=False)
        return text, self._format.encode(_turns(self._format.name, messages, template), _is_answered(template))


def _turns(name: str, messages: Sequence[Message], template: dict[str, Any]) -> list[Turn]:
    """Return messages as a format takes them; RequestError for what it has no place for."""
    tools = template.get("tools")
    if name in ("ChatGLM3", "GLM-4") and isinstance(messages, list | tuple):
        messages = as_turns(with_tools(name, messages, tools) if tools else messages, in_python=name == "ChatGLM3")
    elif tools:
        raise RequestError(f"{name}'s chat format has no place for tools; describe them in a message")
    turns = []
    for index, message in enumerate(checked_messages(messages)):
        content, metadata = message.get("content"), message.get("metadata", "")
        if not isinstance(content, str):
            raise RequestError(f"messages[{index}]: {name}'s chat format needs a content")
        if not isinstance(metadata, str) or "\n" in metadata:
            raise RequestError(f"messages[{index}]: metadata must be a string of one line, found {metadata!r:.40}")
        turns.append(Turn(message["role"], content, metadata))
    return turns


def _is_answered(template: dict[str, Any]) -> bool:
    return bool(template.get("add_generation_prompt", True))
