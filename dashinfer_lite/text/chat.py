"""Chat templates: a conversation becomes the prompt text that the model was trained on."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from ..errors import ModelError, RequestError
from .call_messages import with_call_objects
from .folder import read_json, read_text, read_tokenizer_config, special_tokens
from .tool_turns import as_turns

MAX_TEMPLATE = 100_000
"""Longest accepted template source in characters; real ones have up to 30 thousand."""

MAX_STATEMENTS = 2000
"""Most statements in a template, since the compiler's time grows with their square; real ones have up to some 300."""

Message = Mapping[str, Any]


class ChatTemplate:
    """The chat templates of a model folder, rendered in a sandbox with bounded work and output."""

    def __init__(self, templates: Mapping[str, str], variables: Mapping[str, str], origin: str) -> None:
        """Take the templates by name, the special tokens they see by variable, and the folder's name for messages."""
        for name, source in templates.items():
            if len(source) > MAX_TEMPLATE:
                raise ModelError(f"{origin}: chat template {name!r} is longer than {MAX_TEMPLATE} characters")
            if source.count("{%") > MAX_STATEMENTS:
                raise ModelError(f"{origin}: chat template {name!r} has more than {MAX_STATEMENTS} statements")
        self._templates = dict(templates)
        self._variables = dict(variables)
        self._origin = origin
        self._compiled: dict[str, _Compiled] = {}

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTemplate":
        """Read a folder's templates; a folder without one gives an object that cannot render. ModelError if broken.

        chat_template.jinja comes before tokenizer_config.json, and that before chat_template.json;
        additional_chat_templates/*.jinja adds more by name.
        """
        path = Path(folder)
        config = read_tokenizer_config(path)
        templates: dict[str, str] = {}
        for file in ("chat_template.json", "tokenizer_config.json"):
            source = config if file == "tokenizer_config.json" else _optional(path / file)
            templates |= _named_templates(source.get("chat_template"), path / file)
        if (path / "chat_template.jinja").exists():
            templates["default"] = read_text(path / "chat_template.jinja")
        for more in sorted(path.glob("additional_chat_templates/*.jinja")):
            templates[more.stem] = read_text(more)
        return cls(templates, special_tokens(config, path), str(path))

    @property
    def available(self) -> bool:
        """Whether the folder has a template at all."""
        return bool(self._templates)

    @property
    def sources(self) -> str:
        """All templates of the folder, one after the other."""
        return "\n".join(self._templates.values())

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Return the prompt of a conversation; further keyword arguments are variables of the template.

        A message is a dict with a role and a content: a string, None, or a list of {"type": "text", "text": …} parts.
        RequestError for a malformed conversation, one that the template refuses, and a template that fails.
        """
        from .sandbox import Sandbox
        from .sandbox_rules import MAX_TEXT

        compiled = self._code("tool_use" if tools and "tool_use" in self._templates else "default")
        if compiled.finds_tools_in_message and isinstance(messages, list | tuple):
            messages = as_turns(messages)
            if tools:
                messages = [{"role": "system", "content": "", "tools": tools}, *messages]
        checked = checked_messages(messages, compiled.takes_parts)
        variables = self._variables | kwargs
        variables |= {"messages": checked, "tools": tools, "add_generation_prompt": add_generation_prompt}
        sandbox = Sandbox()
        pieces, length = [], 0
        try:
            template = sandbox.template_class.from_code(sandbox, compiled.code, sandbox.make_globals(None))
            for piece in template.generate(variables):
                length += len(piece)
                if length > MAX_TEXT:
                    raise RequestError(f"{self._origin}: the prompt is longer than {MAX_TEXT} characters")
                pieces.append(piece)
        except RequestError:
            raise
        except Exception as error:  # whatever a template can provoke, RecursionError and MemoryError included
            raise RequestError(f"{self._origin}: the chat template failed: {_reason(error)}") from error
        return "".join(pieces)

    def _code(self, name: str) -> "_Compiled":
        if not self._templates:
            raise RequestError(
                f"{self._origin}: this model has no chat template; use a plain prompt, or add a chat_template.jinja"
            )
        if name not in self._templates:
            if len(self._templates) > 1:
                names = ", ".join(sorted(self._templates))
                raise RequestError(f"{self._origin}: none of the chat templates ({names}) is called {name!r}")
            name = next(iter(self._templates))
        if name not in self._compiled:
            from .sandbox import Sandbox

            source = self._templates[name]
            try:
                code = Sandbox().compile(source)
            except Exception as error:
                raise RequestError(f"{self._origin}: the chat template is broken: {_reason(error)}") from error
            finds_tools = "metadata" in source and _TOOLS_OF_MESSAGE.search(source) is not None
            self._compiled[name] = _Compiled(code, _LOOP_OVER_CONTENT.search(source) is not None, finds_tools)
        return self._compiled[name]


def checked_messages(messages: Sequence[Message], takes_parts: bool = False) -> list[dict[str, Any]]:
    """Return messages with a role and a content; a list of text parts is joined, unless it is to stay as it is.

    RequestError for anything else than a list of such messages.
    """
    if not isinstance(messages, list | tuple):
        raise RequestError(f"messages must be a list, found {type(messages).__name__}")
    if not messages:
        raise RequestError("messages must not be empty")
    return [_checked_message(message, index, takes_parts) for index, message in enumerate(messages)]


class _Compiled(NamedTuple):
    """A template's code; whether it takes a content's parts apart itself, and whether, as GLM-4's does, it finds tools
    in a message and calls beside the role."""

    code: CodeType
    takes_parts: bool
    finds_tools_in_message: bool


_TOOLS_OF_MESSAGE = re.compile(r"\w\[['\"]tools['\"]\]")
_LOOP_OVER_CONTENT = re.compile(r"\{%[-+]?\s*for\s+\w+\s+in\s+(\w+(\.|\[['\"]))?content\b")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _named_templates(value: Any, path: Path) -> dict[str, str]:
    """Return name → source of a chat_template entry: one string, or a list of {"name", "template"}."""
    if value is None:
        return {}
    entries = value if isinstance(value, list) else [{"name": "default", "template": value}]
    named = {}
    for entry in entries:
        pair = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise ModelError(f"{path}: chat_template must be a string or a list of objects with name and template")
        named[pair[0]] = pair[1]
    return named


def _checked_message(message: Message, index: int, takes_parts: bool) -> dict[str, Any]:
    """Return a message as the template gets it: a list of parts is joined unless the template loops over it."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be a dict with role and content, found {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{where}: role must be a string, found {message.get('role')!r:.40}")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return with_call_objects(message)
    if not isinstance(content, list | tuple):
        raise RequestError(f"{where}: content must be a string, a list of parts or None, not {type(content).__name__}")
    texts = [_part_text(part, f"{where}: content[{i}]") for i, part in enumerate(content)]
    return {**with_call_objects(message), "content": list(content) if takes_parts else "\n".join(texts)}


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f'{where} must be a text part like {{"type": "text", "text": "…"}}')
    return str(part["text"])


def _reason(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return f"{error!s:.300}" + (f" (line {line})" if line else "") if str(error) else type(error).__name__
