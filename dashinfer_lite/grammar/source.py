"""What an answer must look like, in the form that llguidance compiles, once it is known to be small enough."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.errors import RequestError
from dashinfer_lite.grammar.schema import MAX_PATTERN, check_schema

if TYPE_CHECKING:
    from dashinfer_lite.guided import Guided

MAX_LINES: Final = 1000
"""Most lines of a Lark grammar: the library recurses along chains of rules."""


def source(guided: Guided, ll_matcher: Any) -> str:
    """The grammar in llguidance's own form, made by its class LLMatcher; RequestError where it exceeds a bound."""
    if guided.json_schema is not None:
        check_schema(json.loads(str(guided.json_schema)))
        return str(ll_matcher.grammar_from_json_schema(guided.json_schema, overrides=_JSON_OPTIONS))
    if guided.json_object:
        return str(ll_matcher.grammar_from_json_schema('{"type":"object"}', overrides=_JSON_OPTIONS))
    if guided.regex is not None:
        if len(guided.regex) > MAX_PATTERN:
            raise RequestError(f"the regex has {len(guided.regex)} characters; at most {MAX_PATTERN} are accepted")
        return str(ll_matcher.grammar_from_regex(guided.regex))
    if guided.choice is not None:
        return str(ll_matcher.grammar_from_lark(f"start: {' | '.join(map(_quoted, guided.choice))}"))
    check_lark(str(guided.grammar))
    return str(ll_matcher.grammar_from_lark(guided.grammar))


def check_lark(text: str) -> None:
    """RequestError where a Lark grammar, or a schema in it, exceeds the bounds."""
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise RequestError(f"the grammar has {len(lines)} lines; at most {MAX_LINES} are accepted")
    rest, start = [], 0
    for found in _JSON.finditer(text):
        if found.start() < start:  # inside of a schema
            continue
        try:
            schema, end = _DECODER.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            continue
        check_schema(schema, is_lenient=True)
        rest.append(text[start : found.start()])
        start = end
    rest.append(text[start:])
    if any(len(line) > MAX_PATTERN for line in "".join(rest).splitlines()):
        raise RequestError(f"a line of the grammar has more than {MAX_PATTERN} characters beside its schemas")


def _quoted(text: str) -> str:
    """A text as Lark spells it: as in JSON, without any character that would have to be escaped."""
    return json.dumps(text).replace("\x7f", "\\u007f")


_JSON: Final = re.compile(r"%json\s*")
_DECODER: Final = json.JSONDecoder()
_JSON_OPTIONS: Final = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    "whitespace_pattern": r" |\n {0,16}",  # bounded: a model must not fill its answer with blanks
}
