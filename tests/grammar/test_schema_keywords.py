"""JSON schemas: what is supported, what is refused by name, and bounds on size."""

from __future__ import annotations

from typing import Any

import pytest

from dashinfer_lite.errors import RequestError
from dashinfer_lite.grammar import schema as rules
from dashinfer_lite.grammar.compiler import GrammarCompiler
from dashinfer_lite.grammar.schema import check_schema
from dashinfer_lite.guided import Guided

SUPPORTED: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "patternProperties": {"^a": {"type": "null"}}, "minProperties": 1, "maxProperties": 3},
    {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "items": [{"type": "string"}], "additionalItems": False},
    {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^[a-z]+$"},
    {"type": "string", "format": "date-time"},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 9, "multipleOf": 0.5},
    {"type": ["string", "null"]},
    {"enum": [1, "a", None, {"a": [1]}]},
    {"const": {"a": 1}},
    {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "t", "description": "d", "x-order": 3},
    {"oneOf": [{"const": "a"}, {"const": "b"}]},
    {"allOf": [{"type": "string"}, {"maxLength": 3}]},
    {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
]
REFUSED: dict[str, Any] = {
    **{word: {} for word in ("not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties")},
    **{word: {} for word in ("dependentSchemas", "dependentRequired", "unevaluatedItems", "dependencies")},
    **{"uniqueItems": True, "nullable": True, "minlength": 3, "$dynamicRef": "#a", "x-guidance": {"lenient": True}},
}


@pytest.mark.parametrize("schema", SUPPORTED, ids=lambda schema: next(reversed(schema)))
def test_supported(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    compiler.compile(Guided(json_schema=schema))


@pytest.mark.parametrize("keyword", REFUSED)
def test_refused_by_name_and_place(compiler: GrammarCompiler, keyword: str) -> None:
    """Also deep inside; a property may be called so, and a value may hold it."""
    inner = {keyword: REFUSED[keyword]}
    for schema, where in (
        (inner, "#"),
        ({"properties": {"a": {"items": inner}}}, "#/properties/a/items"),
        ({"anyOf": [True, inner]}, "#/anyOf/1"),
        ({"$defs": {"d": inner}}, r"#/\$defs/d"),
    ):
        with pytest.raises(RequestError, match=rf"at {where} has the keyword '{keyword.replace('$', '.')}'"):
            compiler.compile(Guided(json_schema=schema))
    compiler.compile(Guided(json_schema={"properties": {keyword: {"const": inner, "default": inner}}}))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "format": "zip"}, "Unknown format: zip"),
        ({"type": "text"}, "Invalid type: text"),
        ({"$ref": "https://example.com/schema"}, "does not fetch"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"pattern": "(a"}, "unclosed group"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf"),
        ({"properties": {"a": {"pattern": 5}}}, "pattern"),
        ({"properties": []}, "'properties' of the JSON schema at # must be an object"),
        ({"anyOf": {}}, "'anyOf' of the JSON schema at # must be a list"),
        ({"items": 5}, "at #/items must be an object, true or false, not 5"),
        ({"enum": 5}, "enum"),
        ({"required": "a"}, "required"),
        ({"maxLength": 10**40}, "json_schema"),
    ],
)
def test_broken(compiler: GrammarCompiler, schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        compiler.compile(Guided(json_schema=schema))


def test_bounds() -> None:
    deep: dict[str, Any] = {}
    for _ in range(rules.MAX_DEPTH):
        deep = {"items": deep}
    check_schema(deep)
    for schema, reason in (
        ({"items": deep}, "nested more than 64"),
        ({"anyOf": [{}] * rules.MAX_NODES}, "more than 5000 subschemas"),
        ({"properties": {str(i): {} for i in range(rules.MAX_PROPERTIES + 1)}}, "has 513 entries"),
        ({"enum": list(range(rules.MAX_ENUM + 1))}, "has 5001 values"),
        ({"allOf": [{"pattern": "a"}] * 5}, "joins more than 4 patterns"),
        ({"allOf": [{"anyOf": [{"pattern": "a"}, {"format": "date"}]}] * 3}, "joins more than 4 patterns"),
    ):
        with pytest.raises(RequestError, match=reason):
            check_schema(schema)
