"""What all dialects of tool calls share: text goes through, calls are collected whole and checked."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Protocol

from dashinfer_lite.tools.deltas import Delta, TextDelta, ToolCallDelta
from dashinfer_lite.tools.scan import Blanks

MAX_CALL: Final = 1 << 20
"""Most characters of a call; what is longer is text."""

State = Callable[[str], str]


class Scanner(Protocol):
    """Recognizes what a call is made of."""

    def feed(self, text: str) -> tuple[int, bool | None]:
        """How much of the text belongs to it, and whether it is complete; None: not yet, False: it is none."""
        ...


class CallParser(ABC):
    """A state machine over pieces of text.

    A state is a method that takes what has come, uses some of it, may set another state, and returns the rest; where
    it returns something it has set another state or used something. What might be a call is kept in `_raw` until it is
    one, or is text: nothing that was shown is ever taken back. Each character is looked at once.
    """

    def __init__(self, names: frozenset[str], new_id: Callable[[], str]) -> None:
        """Calls of other tools than `names` are text."""
        self._names = names
        self._new_id = new_id
        self._blanks = Blanks()
        self._raw: list[str] = []
        self._raw_size = 0
        self._deltas: list[Delta] = []
        self._calls = 0
        self._state: State = self._start

    def push(self, text: str) -> list[Delta]:
        """Take more of the answer; what is certain now."""
        while text:
            text = self._state(text)
        return self._taken()

    def finish(self) -> list[Delta]:
        """The answer has ended; what was held back."""
        self._end()
        self._give_up()
        self._show(self._blanks.release())
        return self._taken()

    @abstractmethod
    def _start(self, text: str) -> str:
        """The state at the beginning of the answer."""

    @abstractmethod
    def _free(self, text: str) -> str:
        """The state in which text goes through."""

    @abstractmethod
    def _end(self) -> None:
        """Take what is complete although its end has not come, and show what a marker has held back."""

    def _text(self, text: str) -> None:
        """Text that is no part of a call."""
        self._show(self._blanks.push(text))

    def _keep(self, text: str) -> None:
        """Text that may be part of a call."""
        self._raw.append(text)
        self._raw_size += len(text)

    def _scan(self, scanner: Scanner, text: str) -> tuple[str, bool]:
        """Keep what a scanner takes; the rest, and whether it is complete. What it does not take makes all text."""
        used, is_complete = scanner.feed(text[: MAX_CALL - self._raw_size])
        self._keep(text[:used])
        if is_complete is False or (is_complete is None and self._raw_size >= MAX_CALL):
            self._give_up()
        return text[used:], is_complete is True

    def _forget(self) -> str:
        """Everything that was kept; from now on nothing is."""
        raw = "".join(self._raw)
        self._raw, self._raw_size = [], 0
        return raw

    def _give_up(self) -> None:
        """What was kept is text."""
        self._text(self._forget())
        self._state = self._free

    def _emit(self, calls: list[tuple[str, str]] | None) -> bool:
        """Calls by name and arguments in place of what was kept, which is text without any; whether there are."""
        if not calls:
            self._give_up()
            return False
        self._forget()
        self._blanks.cut()
        for name, arguments in calls:
            self._deltas.append(ToolCallDelta(self._calls, self._new_id(), name))
            self._deltas.append(ToolCallDelta(self._calls, arguments_delta=arguments))
            self._calls += 1
        return True

    def _show(self, text: str) -> None:
        if text:
            self._deltas.append(TextDelta(text))

    def _taken(self) -> list[Delta]:
        """The deltas so far, neighbouring texts joined."""
        joined: list[Delta] = []
        for delta in self._deltas:
            if isinstance(delta, TextDelta) and joined and isinstance(joined[-1], TextDelta):
                joined[-1] = TextDelta(joined[-1].text + delta.text)
            else:
                joined.append(delta)
        self._deltas = []
        return joined


class PlainText:
    """The parser of answers without calls."""

    def push(self, text: str) -> list[Delta]:
        return [TextDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


def read_json(text: str) -> Any:
    """A JSON value; None for what is none, NaN and infinities included."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def read_call(value: Any, names: frozenset[str]) -> tuple[str, str] | None:
    """Name and arguments of a call like {"name": …, "arguments": {…}}; None for anything else."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    written = written_arguments(arguments)
    return None if written is None else (value["name"], written)


def written_arguments(arguments: Any) -> str | None:
    """Arguments as JSON text that can be sent on; None for what is no object."""
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError):  # a number beyond all bounds
        return None
    return text


def call_id() -> str:
    """A fresh id of a call."""
    return f"call_{secrets.token_hex(12)}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
