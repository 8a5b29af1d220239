"""What an evaluation reads: items with known answers, and a text."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from dashinfer_lite.cli.eval_judge import FIELDS
from dashinfer_lite.errors import RequestError

Item = dict[str, Any]


def built_in(name: str) -> str:
    """A file of the data that the package ships: items.jsonl, text.txt or names.txt."""
    return (files("dashinfer_lite") / "assets" / "tiny_eval" / name).read_text(encoding="utf-8")


def read_text(path: str) -> str:
    """A file of text; RequestError where it is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text: {error}") from None


def parse_items(text: str, where: str) -> list[Item]:
    """Items of lines of JSON, checked: RequestError names the line that is wrong.

    An item has `messages` (and maybe `tools`) or a `prompt`, `match` and what that needs (see eval_judge), and may have
    `id`, `task` and `max_tokens`.
    """
    items = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            items.append(_item(line, f"{where}, line {number}"))
    if not items:
        raise RequestError(f"{where}: holds no items")
    return items


def evenly(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, spread over all of them."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _item(line: str, where: str) -> Item:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: is not JSON: {error}") from None
    if not isinstance(item, dict):
        raise RequestError(f"{where}: is not a JSON object")
    match = item.get("match")
    if not isinstance(match, str) or match not in FIELDS:
        raise RequestError(f"{where}: match is {match!r:.40}; expected one of {', '.join(FIELDS)}")
    fields = FIELDS[match] | ({"prompt": str} if "prompt" in item else {"messages": list})
    for name, kind in fields.items():
        if not isinstance(item.get(name), kind):
            raise RequestError(f"{where}: {name} is {item.get(name)!r:.40}; expected a {kind.__name__}")
    most = item.setdefault("max_tokens", 450 if match == "story" else 160)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise RequestError(f"{where}: max_tokens is {most!r:.40}; expected a positive integer")
    item["task"] = str(item.get("task", match))
    return item
