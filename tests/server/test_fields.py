"""Whatever a field holds: an answer, or 400 with the field's name; never a crash, and the engine goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from asgi import WEATHER, Client

from dashinfer_lite.server.openapi import POSTS

BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1]},
}
VALUES = ("-1", "0", "2147483648", "9223372036854775808", "1e400", "NaN", '"1"', "true", "null")
NO_INTEGERS = ("1e400", "NaN", '"1"', "true")


def fields(client: Client, kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, field, schema) of every field whose schema speaks of a JSON type, directly or in a list or object."""
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    for path, post in POSTS.items():
        for name, schema in schemas[post.request.__name__]["properties"].items():
            for option in schema.get("anyOf", [schema]):
                inner = option.get("items", option.get("additionalProperties")) or {}
                within = inner.get("anyOf", [inner]) if isinstance(inner, dict) else []
                if kind in (option.get("type"), *(one.get("type") for one in within)):
                    yield path, name, option


def sent(client: Client, path: str, name: str, schema: dict[str, Any], value: str) -> Any:
    """The answer to a request whose field holds the value, in a list or object where the field is one."""
    wrapped = {"array": f"[{value}]", "object": f'{{"1": {value}}}'}.get(schema.get("type", ""), value)
    base = {key: value for key, value in BASES[path].items() if key != name}
    if name in ("tools", "tool_choice"):
        base["tools"] = [WEATHER]
    body = json.dumps(base)[:-1] + (", " if base else "") + f'"{name}": {wrapped}}}'
    return client.post(path, body.encode())


def test_every_integer(client: Client) -> None:
    """{-1, 0, 2³¹, 2⁶³, 1e400, NaN, "1", true, null} in every field that takes integers."""
    seen = set()
    for path, name, schema in fields(client, "integer"):
        seen.add((path, name))
        for value in VALUES:
            reply = sent(client, path, name, schema, value)
            assert reply.status in (200, 400), (path, name, value, reply.body)
            if value in NO_INTEGERS and (name, value) not in (("prompt", '"1"'), ("input", '"1"')):
                assert reply.status == 400, (path, name, value)
            if reply.status == 400 and value != "NaN":
                assert name in (reply.error["param"] or reply.error["message"]), (path, name, value, reply.error)
            if value in ("2147483648", "9223372036854775808") and name != "seed":
                assert reply.status == 400, (path, name, value)
    assert len(seen) > 28 and ("/v1/completions", "prompt") in seen
    assert client.chat().status == 200


@pytest.mark.parametrize("value", ["-1", "1e400", "-1e400", "NaN", "Infinity", "101", '"1"', "true", "[]", "null"])
def test_every_number(client: Client, value: str) -> None:
    for path, name, schema in fields(client, "number"):
        reply = sent(client, path, name, schema, value)
        expected = (
            (200,) if value == "null" and schema.get("type") == "number" else (200, 400) if value == "-1" else (400,)
        )
        assert reply.status in expected, (path, name, value, reply.body)


def test_every_switch_and_text(client: Client) -> None:
    """Of another type, or far too long: 400 with the field's name."""
    for kind, values in (("boolean", ("0", '"true"', "[]")), ("string", ("1", "true", "[1.5]"))):
        for path, name, schema in fields(client, kind):
            if schema.get("type") != kind or name in ("prompt", "input"):
                continue
            for value in values:
                reply = sent(client, path, name, schema, value)
                assert reply.status == 400 and name in (reply.error["param"] or ""), (path, name, value, reply.body)


@pytest.mark.parametrize("path", BASES)
def test_unknown_fields(client: Client, path: str) -> None:
    for name in ("tempreature", "__class__", "a" * 500, "", "\u0000", "functions"):
        reply = client.post(path, {**BASES[path], name: 1})
        assert reply.status == 400 and reply.error["code"] == "unknown_parameter"
        assert (reply.error["param"] or "") == name[:64]


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b"\xff\xfe",
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b"[" * 100_000,
        b'{"x":' * 50_000,
    ],
    ids=repr,
)
def test_bodies_that_are_no_objects(client: Client, path: str, body: bytes) -> None:
    reply = client.post(path, body)
    assert reply.status == 400 and reply.error["type"] == "invalid_request_error"


def test_deep_and_wide_values(client: Client) -> None:
    """Nested schemas, huge lists, long texts: within limits an answer, beyond them 400, and soon."""
    deep: Any = {}
    for _ in range(900):
        deep = {"a": deep}
    for fields_ in (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": deep}}},
        {"chat_template_kwargs": {"x": deep}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}], "tool_choice": "required"},
        {"stop": ["x"] * 17},
        {"stop": "x" * 257},
        {"logit_bias": {str(token): 1 for token in range(1025)}},
        {"tools": [{**WEATHER}] * 200},
        {"structured_outputs": {"choice": ["x"] * 6000}},
        {"n": 17},
        {"messages": [{"role": "user", "content": "x" * 1_000_000}]},
        {"messages": [{"role": "user", "content": "x"}] * 20_000},
    ):
        reply = client.chat(**{"max_tokens": 4, **fields_})
        assert reply.status in (200, 400), reply.body[:300]
        assert reply.status == 400 or "chat_template_kwargs" in fields_
    assert client.chat().status == 200


def test_messages_name_the_field(client: Client) -> None:
    for fields_, param, words in (
        ({"temperature": 3}, "temperature", "temperature: expected float <= 2.0"),
        ({"stop": ["a", ""]}, "stop[1]", "stop[1]: expected str of length >= 1"),
        ({"logit_bias": {"5000": 1}}, "logit_bias", "logit_bias has token 5000; the model has the tokens 0 to 4095"),
        ({"min_tokens": 9, "max_tokens": 4}, "min_tokens", "min_tokens is 9; it must be at most max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs: true"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid enum value 'boss'"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing parameter"),
        ({"stream_options": {"x": 1}}, "stream_options.x", "unknown parameter"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "cannot set 'messages'"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs", "cannot set 'a b'"),
    ):
        reply = client.chat(**fields_)  # type: ignore[arg-type]
        assert reply.status == 400 and reply.error["param"] == param, reply.error
        assert words in reply.error["message"], reply.error
