"""What an answer must look like is checked when it is said, within bounds."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dashinfer_lite.errors import RequestError
from dashinfer_lite.guided import MAX_CHOICES, MAX_GRAMMAR, MAX_SOURCE, Guided
from dashinfer_lite.sampling_params import SamplingParams

GOOD: dict[str, list[Any]] = {
    "json_object": [True],
    "json_schema": [{}, {"type": "object"}, '{"type": "object"}', {"const": "é\n"}],
    "regex": ["a", "é+"],
    "choice": [["a"], ("a", "b")],
    "grammar": ['start: "a"'],
}
WRONG: dict[str, list[Any]] = {
    "json_object": [1, "yes", {}],
    "json_schema": [True, [], "[]", "{", "", 5, {"a": math.nan}, {"a": b""}, {"a": {1, 2}}, {("a",): 1}, "\ud800"],
    "regex": ["", 5, b"a", ["a"], "\ud800"],
    "choice": [[], "a", [""], ["a", 5], ["a", "a"], {"a": 1}, 5, ["\ud800"], list(map(str, range(MAX_CHOICES + 1)))],
    "grammar": ["", 5],
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("name", GOOD)
def test_each_kind(name: str) -> None:
    for value in GOOD[name]:
        guided = Guided(**{name: value})
        assert guided.kind == name and guided == Guided(**{name: value})
        assert hash(guided) == hash(Guided(**{name: value}))
        assert SamplingParams(guided={name: value}).guided == guided  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(RequestError, match=f"^{name} "):
            Guided(**{name: value})


def test_exactly_one() -> None:
    for values in ({}, {"json_object": False}, {"regex": "a", "choice": ["b"]}):
        with pytest.raises(RequestError, match="guided takes exactly one of json_object, json_schema, regex"):
            Guided(**values)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="'jsonschema' is nothing that guides"):
        Guided.from_dict({"jsonschema": {}})


def test_schemas_are_kept_as_text_in_their_own_order() -> None:
    assert Guided(json_schema={"b": 1, "a": "é"}).json_schema == '{"b":1,"a":"é"}'
    assert Guided(json_schema=' {"b": 1,\n"a": "é"}') == Guided(json_schema={"b": 1, "a": "é"})
    assert Guided(json_schema={"b": 1, "a": 2}) != Guided(json_schema={"a": 2, "b": 1})


def test_sizes() -> None:
    """Ten megabytes, a million levels, a schema that holds itself: one clear error each."""
    for name, value in {
        "json_schema": {"description": "x" * 10_000_000},
        "regex": "a" * (MAX_SOURCE + 1),
        "choice": ["a" * MAX_SOURCE, "b"],
    }.items():
        with pytest.raises(RequestError, match=f"^{name} has .* characters; at most {MAX_SOURCE}"):
            Guided(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^grammar has 262145 characters"):
        Guided(grammar="a" * (MAX_GRAMMAR + 1))
    with pytest.raises(RequestError, match="at most"):
        Guided(json_schema=json.dumps({"description": "x" * 10_000_000}))
    itself: dict[str, Any] = {}
    itself["not"] = itself
    for schema in (nested(100_000), itself, '{"not":' * 8000 + "{}" + "}" * 8000):
        with pytest.raises(RequestError, match=r"json_schema is (nested too deeply|no valid JSON)"):
            Guided(json_schema=schema)
