"""Bounds on JSON schemas, and the keywords that can be enforced: what is not known to be is refused by name."""

from __future__ import annotations

from typing import Any, Final

from dashinfer_lite.errors import RequestError

MAX_DEPTH: Final = 64
MAX_NODES: Final = 5000
MAX_PROPERTIES: Final = 512
MAX_ENUM: Final = 5000
MAX_JOINED_PATTERNS: Final = 4
MAX_PATTERN: Final = 4096
"""Most characters of a regular expression: compiling takes time and memory by its square."""

_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords whose value maps names to schemas."""

_LISTED: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""

_SINGLE: Final = frozenset({"items", "additionalItems", "additionalProperties"})
"""Keywords whose value is a schema; `items` of older drafts is a list of them."""

_SCHEMAS: Final = _NAMED | _LISTED | _SINGLE

_PLAIN: Final = frozenset(
    (
        *("type", "enum", "const", "required", "$ref", "pattern", "format", "multipleOf"),
        *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    )
)
"""Keywords that constrain a value without a schema below them."""

_NOTES: Final = frozenset(
    (
        *("$schema", "$id", "$anchor", "$comment", "$vocabulary", "title", "description", "default", "example"),
        *("examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema"),
        *("discriminator", "externalDocs", "markdownDescription", "propertyOrdering"),
    )
)
"""Keywords that constrain nothing."""


def check_schema(schema: Any, is_lenient: bool = False) -> None:
    """RequestError where a schema is too large, or has a keyword that cannot be enforced; names where it stands.

    `is_lenient`: such keywords are passed over.
    """
    nodes = 0
    waiting: list[tuple[Any, str, int]] = [(schema, "#", 0)]
    while waiting:
        node, where, depth = waiting.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise RequestError(f"the JSON schema has more than {MAX_NODES} subschemas")
        if depth > MAX_DEPTH:
            raise RequestError(f"the JSON schema is nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise RequestError(f"the JSON schema at {where:.200} must be an object, true or false, not {node!r:.40}")
        for keyword, value in node.items():
            _check_keyword(keyword, value, where, is_lenient)
            waiting += [(child, f"{where}/{at}", depth + 1) for child, at in _children(keyword, value, where)]
        if _joined_patterns(node.get("allOf")) > MAX_JOINED_PATTERNS:
            raise RequestError(f"allOf at {where:.200} joins more than {MAX_JOINED_PATTERNS} patterns")


def _children(keyword: str, value: Any, where: str) -> list[tuple[Any, str]]:
    """The schemas below a keyword, and where they stand."""
    if keyword in _NAMED:
        if not isinstance(value, dict):
            raise _malformed(keyword, where, "an object")
        if len(value) > MAX_PROPERTIES:
            raise RequestError(f"{keyword!r} at {where:.200} has {len(value)} entries; at most {MAX_PROPERTIES}")
        return [(child, f"{keyword}/{name}") for name, child in value.items()]
    if keyword in _LISTED or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list):
            raise _malformed(keyword, where, "a list")
        return [(child, f"{keyword}/{i}") for i, child in enumerate(value)]
    if keyword in _SINGLE:
        return [(value, keyword)]
    return []


def _check_keyword(keyword: str, value: Any, where: str, is_lenient: bool) -> None:
    if keyword == "enum" and isinstance(value, list) and len(value) > MAX_ENUM:
        raise RequestError(f"the enum at {where:.200} has {len(value)} values; at most {MAX_ENUM}")
    patterns = [value] if keyword == "pattern" else value if keyword == "patternProperties" else ()
    if any(isinstance(pattern, str) and len(pattern) > MAX_PATTERN for pattern in patterns):
        raise RequestError(f"a pattern at {where:.200} has more than {MAX_PATTERN} characters")
    is_note = keyword in _NOTES or (keyword.startswith("x-") and keyword != "x-guidance")
    if not is_lenient and keyword not in _SCHEMAS | _PLAIN and not is_note:
        raise RequestError(f"the JSON schema at {where:.200} has the keyword {keyword!r:.60}, which is not supported")


def _joined_patterns(branches: Any) -> int:
    """How many patterns a value must fit at the same time, at most."""
    count = 0
    waiting = list(branches) if isinstance(branches, list) else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            count += sum(keyword in node for keyword in ("pattern", "format"))
            waiting += [child for key in _LISTED if isinstance(node.get(key), list) for child in node[key]]
    return count


def _malformed(keyword: str, where: str, expected: str) -> RequestError:
    return RequestError(f"{keyword!r} of the JSON schema at {where:.200} must be {expected}")
