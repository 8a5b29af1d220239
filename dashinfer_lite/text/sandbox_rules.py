"""What a chat template may use, and how much an operation can make of its operands."""

import re
from collections.abc import Callable
from typing import Any

MAX_TEXT = 4 << 20
"""Most characters in one string that a template makes, the rendered prompt included."""

MAX_FORMAT = 10_000
"""Longest template of `%` and `str.format`."""

TOO_LARGE = MAX_TEXT + 1
"""The size of a result that is refused in any case."""

FREE_FILTERS = frozenset(["attr", "count", "d", "default", "first", "last", "length"])
"""Filters that take the same time whatever their operand is."""

WALKING_FILTERS = frozenset(
    ["items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"],
)
"""Filters that walk the elements of their operand without looking into them."""

WHOLE_FILTERS = frozenset(
    [
        *[
            "abs",
            "capitalize",
            "dictsort",
            "e",
            "escape",
            "float",
            "format",
            "groupby",
            "indent",
            "int",
            "join",
            "lower",
        ],
        *["max", "min", "replace", "round", "safe", "sort", "string", "sum", "title", "tojson", "trim", "truncate"],
        *["unique", "upper", "wordcount"],
    ]
)
"""Filters that look at all of their operand, however deep it is."""

WHOLE_TESTS = frozenset(
    [
        *["eq", "equalto", "==", "ne", "!=", "gt", "greaterthan", ">", "ge", ">=", "lt", "lessthan", "<", "le", "<="],
        *["in", "lower", "upper"],
    ]
)
"""Tests that look at all of their operand; the others take the same time whatever it is."""

METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        [
            *["capitalize", "casefold", "count", "endswith", "find", "format", "format_map", "index", "isalnum"],
            *["isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper"],
            *["join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex"],
            *["rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title"],
            *["upper"],
        ]
    ),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    list: frozenset(["copy", "count", "index"]),
    tuple: frozenset(["count", "index"]),
}
"""The methods that a template may call, by the type of the value."""

COMPARING = frozenset(["dictsort", "groupby", "max", "min", "sort", "unique"])
"""Filters that compare elements with each other, in Python code for each."""

QUADRATIC = frozenset(["lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim"])
"""Methods and filters of a string that may compare each of its characters with each of their first argument's."""


def replaced(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    """Return an upper bound of the length of text.replace(old, new)."""
    text, old, new = str(text), str(old), str(new)
    return len(text) + int(text.count(old)) * len(new)


def joined(parts: Any, separator: Any = "", attribute: Any = None) -> int:
    """Return the length of all separators of a join."""
    return len(parts) * len(str(separator)) if hasattr(parts, "__len__") else 0


def indented(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    """Return an upper bound of the length of an indented text."""
    text = str(text)
    return len(text) + (len(text.splitlines()) + 1) * (len(width) if isinstance(width, str) else max(width, 0))


def rounded(value: Any, precision: int = 0, method: str = "common") -> int:
    """Refuse a precision that would compute a huge power of ten."""
    return 0 if abs(precision) <= 64 else TOO_LARGE


def summed(parts: Any, attribute: Any = None, start: Any = 0) -> int:
    """Refuse to sum lists, which is quadratic."""
    return 0 if isinstance(start, int | float) else TOO_LARGE


def dumped(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> int:
    """Refuse wide indents and separators in JSON."""
    short = [part is None or (isinstance(part, str) and len(part) <= 16) for part in separators or ()]
    width = len(indent) if isinstance(indent, str) else indent or 0
    return 0 if width <= 16 and all(short) else TOO_LARGE


SIZES: dict[str, Callable[..., int]] = {
    "replace": replaced,
    "join": joined,
    "indent": indented,
    "round": rounded,
    "sum": summed,
    "tojson": dumped,
}
"""Characters that a filter or method can make beyond a fixed multiple of its operands."""


def percent_fields(template: str) -> int | None:
    """Count the fields of a `%` template; None if it is too long, or one is named or may be 1000 characters wide."""
    if len(template) > MAX_FORMAT:
        return None
    fields = [found.group() for found in re.finditer(r"%[-#( +.*\d]*", template)]
    wide = any("*" in field or "(" in field or re.search(r"\d{4}", field) for field in fields)
    return None if wide else len(fields)


def brace_fields(template: str) -> int | None:
    """Count the fields of a `str.format` template; None if it is too long or one may be 1000 characters wide."""
    if len(template) > MAX_FORMAT:
        return None
    fields = list(re.finditer(r"\{[^{}]*", template))
    nested = any(":" in found.group() and template[found.end() : found.end() + 1] == "{" for found in fields)
    wide = nested or any(re.search(r"\d{4}", found.group()) for found in fields)
    return None if wide else len(fields)
