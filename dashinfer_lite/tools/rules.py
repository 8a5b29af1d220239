"""Lark grammars of calls, rule by rule, in llguidance's dialect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dashinfer_lite.tools.definitions import Tool

MAX_CALLS: Final = 16

_BLANKS: Final = {"whitespace_flexible": True, "whitespace_pattern": r" |\n {0,16}"}


class Rules:
    """A grammar in the making."""

    def __init__(self, special: Callable[[str], int | None]) -> None:
        """`special` gives the id of a special token by its name, None for what is plain text."""
        self._special = special
        self._lines: list[str] = []
        self.add("ANYTHING", r"/(.|\n)*/")

    def add(self, name: str, body: str) -> str:
        """Add a rule; returns its name."""
        self._lines.append(f"{name}: {body}")
        return name.partition("[")[0]

    def text(self, text: str) -> str:
        """A text, or the special token that is written so."""
        token = self._special(text)
        return f"<[{token}]>" if token is not None else quoted(text)

    def arguments(self, index: int, tool: Tool, schema: Mapping[str, Any] | None = None) -> str:
        """Add the rule of a tool's arguments, or of a schema among them; returns its name.

        Without `strict`, keywords that cannot be enforced are passed over.
        """
        options = {**_BLANKS, "lenient": not tool.strict, "coerce_one_of": not tool.strict}
        written = json.dumps({**(tool.parameters if schema is None else schema), "x-guidance": options})
        return self.add(f"value_{index}", f"%json {written}")

    def after_text(self, marker: str, rest: str) -> str:
        """Add the rule of any text up to a marker, and then `rest`; returns its name."""
        if self._special(marker) is not None:
            return self.add("later_call", f"ANYTHING {self.text(marker)} {rest}")
        start = self.add("until_call[lazy]", f"ANYTHING {quoted(marker)}")
        return self.add("later_call", f"{start} {rest}")

    def call(self, index: int, tool: Tool, key: str, before: str = "", after: str = "") -> str:
        """A call as a JSON object with name and `key`, between two texts."""
        head = before + f'{{"name": "{tool.name}", "{key}": '
        return f"{quoted(head)} {self.arguments(index, tool)} {quoted('}' + after)}"

    def grammar(self, start: str) -> str:
        """The whole, with what an answer looks like."""
        return "\n".join([f"start: {start}", *self._lines])


def one_of(names: Sequence[str]) -> str:
    """Alternatives in brackets."""
    return f"({' | '.join(names)})"


def repeated(call: str, separator: str, is_parallel: bool) -> str:
    """A call, and more of them after a separator where there may be several."""
    return f"{call} ({separator} {call}){{0,{MAX_CALLS - 1}}}" if is_parallel else call


def quoted(text: str) -> str:
    """A text as Lark spells it."""
    return json.dumps(text).replace("\x7f", "\\u007f")
