"""Whether an answer to an item is right.

An item's `match` says how it is judged:
  exact      the answer is the expected text
  json       both parse to the same JSON value
  tool_call  the JSON between <tool_call> and </tool_call> is the same value
  story      every text of `contains` occurs, and of the names that stories have only those of `names` and one more
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

# What an item of each kind must have beside `match`, and the type of it.
FIELDS: Final[dict[str, dict[str, type]]] = {
    "exact": {"expected": str},
    "json": {"expected": str},
    "tool_call": {"expected": str},
    "story": {"contains": list, "names": list},
}


def is_right(item: Mapping[str, Any], answer: str, story_names: Container[str]) -> bool:
    """Judge an answer; `story_names` are all the names that stories have."""
    match item["match"]:
        case "exact":
            return answer.strip() == str(item["expected"]).strip()
        case "json":
            return _is_same_json(item["expected"], answer)
        case "tool_call":
            return _is_same_json(_call(item["expected"]), _call(answer))
        case _:
            names = {word for word in re.findall(r"[A-Z][a-z]+", answer) if word in story_names}
            return all(text in answer for text in item["contains"]) and len(names - set(item["names"])) <= 1


def _call(text: str) -> str:
    found = re.fullmatch(r"<tool_call>\s*(.*?)\s*</tool_call>", text.strip(), re.DOTALL)
    return found[1] if found else ""


def _is_same_json(expected: str, answer: str) -> bool:
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except (ValueError, RecursionError):
        return False
