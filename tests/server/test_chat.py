"""POST /v1/chat/completions: answers, streams, and what a request may ask for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from asgi import STORY, SUM, WEATHER, Client, Reply


def content(reply: Reply) -> str:
    return str(reply.json["choices"][0]["message"]["content"])


def streamed(reply: Reply, index: int = 0) -> str:
    choices = [choice for chunk in reply.chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_an_answer(client: Client) -> None:
    reply = client.chat()
    assert reply.status == 200 and reply.headers["content-type"] == "application/json"
    found = reply.json
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", found["id"])
    assert (found["object"], found["model"]) == ("chat.completion", "tiny_chat")
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": SUM, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert found["usage"] == {
        "prompt_tokens": 18,
        "completion_tokens": 11,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_a_stream_has_openai_s_form(client: Client) -> None:
    reply = client.chat(stream=True)
    assert reply.status == 200 and reply.headers["cache-control"] == "no-cache"
    first, *middle, last = reply.chunks
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert all(chunk["choices"][0]["delta"].keys() == {"content"} for chunk in middle)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in middle)
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == "stop"
    assert streamed(reply) == SUM
    for chunk in reply.chunks:
        assert chunk.keys() == {"id", "object", "created", "model", "choices"}
        assert (chunk["id"], chunk["object"]) == (first["id"], "chat.completion.chunk")


def test_usage_in_a_stream(client: Client) -> None:
    whole = client.chat(stream=True, stream_options={"include_usage": True}).chunks
    assert [chunk["usage"] for chunk in whole[:-1]] == [None] * (len(whole) - 1)
    assert whole[-1]["choices"] == [] and whole[-1]["usage"]["completion_tokens"] == 11
    always = client.chat(stream=True, stream_options={"continuous_usage_stats": True}).chunks
    counts = [chunk["usage"]["completion_tokens"] for chunk in always]
    assert counts == sorted(counts) and counts[-1] == 11 and always[-1]["choices"]


def test_several_answers_and_seeds(client: Client) -> None:
    """Equal seeds give equal answers, whole or streamed; the answers of one request differ."""
    fields: dict[str, Any] = {"n": 3, "seed": -5, "temperature": 1.2, "max_tokens": 24}
    whole = client.chat(STORY, **fields)
    texts = [choice["message"]["content"] for choice in whole.json["choices"]]
    assert len(set(texts)) == 3 and whole.json["usage"]["completion_tokens"] == 72
    again = client.chat(STORY, stream=True, **fields)
    assert [streamed(again, index) for index in range(3)] == texts
    assert client.chat(STORY, **fields | {"seed": 6}).json["choices"][0]["message"]["content"] != texts[0]


def test_log_probabilities(client: Client) -> None:
    """The text's tokens with their bytes, the likeliest first; a stream gives the same ones."""
    reply = client.chat(logprobs=True, top_logprobs=3)
    entries = reply.json["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == SUM
    for entry in entries:
        likely = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(likely) == 3 and likely == sorted(likely, reverse=True)
        assert entry["top_logprobs"][0]["token"] == entry["token"] and entry["logprob"] <= 0
    chunks = client.chat(logprobs=True, top_logprobs=3, stream=True).chunks
    parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert [entry for part in parts for entry in part["content"]] == entries
    plain = client.chat(logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in plain] == [[]] * len(entries)


def test_stop_texts(client: Client) -> None:
    stopped = client.chat(STORY, stop=["fox", "."], max_tokens=64).json["choices"][0]
    assert stopped["finish_reason"] == "stop" and stopped["stop_reason"] == "fox"
    assert "fox" not in stopped["message"]["content"]
    with_text = client.chat(STORY, stop="fox", include_stop_str_in_output=True, max_tokens=64)
    assert content(with_text) == stopped["message"]["content"] + "fox"
    assert streamed(client.chat(STORY, stop=["fox", "."], max_tokens=64, stream=True)) == stopped["message"]["content"]


def test_limits_on_length(client: Client) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = client.chat(STORY, **{field: 3})
        assert reply.json["usage"]["completion_tokens"] == 3
        assert reply.json["choices"][0]["finish_reason"] == "length"
    long = client.chat("a fox and " * 150, ignore_eos=True)
    assert long.json["usage"]["total_tokens"] == 512 and long.json["choices"][0]["finish_reason"] == "length"


def test_bias_and_bans(client: Client) -> None:
    """A token that is pushed comes; a word that is banned does not."""
    (fox,) = client.post("/tokenize", {"prompt": " fox"}).json["tokens"]
    biased = client.chat(STORY, logit_bias={str(fox): 100}, max_tokens=3)
    assert content(biased) == " fox fox fox"
    plain = content(client.chat(STORY, max_tokens=40))
    assert "fox" in plain and "fox" not in content(client.chat(STORY, max_tokens=40, bad_words=["fox"]))


def test_cached_prefixes_and_salts(client: Client) -> None:
    """A second request finds the first one's prefix, unless their salts differ."""
    text = "Once more, with feeling: " + "a fox and a bear and " * 20

    def cached(**fields: Any) -> int:
        usage = client.chat(text, max_tokens=1, **fields).json["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") >= 64
    assert cached(cache_salt="yours") == 0


def test_a_conversation_goes_on(client: Client) -> None:
    """Content as parts, an assistant's message as clients echo it, a developer's instructions."""
    messages = [
        {"role": "developer", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "17 + 25?"}]},
        {"role": "assistant", "content": SUM, "refusal": None, "annotations": [], "audio": None, "function_call": None},
        {"role": "user", "content": "And 14 + 14?", "name": "me"},
    ]
    reply = client.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 16})
    assert reply.status == 200 and reply.json["usage"]["prompt_tokens"] > 40


def test_bookkeeping_is_ignored(client: Client) -> None:
    fields = {
        "store": True, "metadata": {"a": "b"}, "user": "me", "service_tier": "auto", "verbosity": "low",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"},
        "safety_identifier": "s", "moderation": None, "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"], "web_search_options": None, "reasoning_effort": "low",
    }  # fmt: skip
    assert content(client.chat(**fields)) == SUM


def test_tools(client: Client) -> None:
    """A call when the model wants one, when it must, and never when it may not; streamed as OpenAI does."""
    free = client.chat("What is the weather in Paris?", tools=[WEATHER]).json["choices"][0]
    (call,) = free["message"]["tool_calls"]
    assert free["finish_reason"] == "tool_calls" and free["message"]["content"] is None
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Paris"})
    forced = client.chat("Hi", tools=[WEATHER], tool_choice="required", stream=True)
    pieces = [piece for chunk in forced.chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert pieces[0].keys() == {"index", "id", "type", "function"} and pieces[0]["function"]["arguments"] == ""
    assert all(piece.keys() == {"index", "function"} for piece in pieces[1:])
    assert "city" in json.loads("".join(piece["function"].get("arguments", "") for piece in pieces))
    assert forced.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    none = client.chat("What is the weather in Paris?", tools=[WEATHER], tool_choice="none", max_tokens=30)
    assert "tool_calls" not in none.json["choices"][0]["message"]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"type": "function", "function": {"name": "other"}}, "must name one of the tools"),
        ({"type": "function"}, "needs the field function"),
        ({"type": "allowed_tools"}, "needs the field allowed_tools"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "other"}}]}},
            "none of the tools",
        ),
    ],
)
def test_choices_among_tools_that_cannot_be(client: Client, choice: Any, words: str) -> None:
    reply = client.chat(tools=[WEATHER], tool_choice=choice)
    assert reply.status == 400 and words in reply.error["message"]
    assert reply.error["param"] == "tool_choice"


def test_the_form_of_an_answer(client: Client) -> None:
    """JSON when JSON is asked for, by a schema or not; other forms by the field's extensions."""
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": person, "strict": True}}
    text = "Give me a JSON object with the name Ada and the age 36."
    assert json.loads(content(client.chat(text, response_format=schema))) == {"name": "Ada", "age": 36}
    assert isinstance(json.loads(content(client.chat(text, response_format={"type": "json_object"}))), dict)
    assert content(client.chat(response_format={"type": "text"})) == SUM
    for fields in (
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "yes|no"}},
        {"structured_outputs": {"grammar": 'start: "yes" | "no"'}},
        {"guided_choice": ["yes", "no"]},
        {"guided_regex": "yes|no"},
    ):
        assert content(client.chat(**fields)) in ("yes", "no")
    assert json.loads(content(client.chat(text, structured_outputs={"json": person}))).keys() == {"name", "age"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"structured_outputs": {"regex": "a(", "choice": ["b"]}}, "exactly one of"),
        ({"structured_outputs": {}}, "exactly one of"),
        ({"guided_regex": "["}, "regex"),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "cannot both be given"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, "schema"),
    ],
)
def test_forms_that_cannot_be(client: Client, fields: Any, words: str) -> None:
    reply = client.chat(**fields)
    assert reply.status == 400 and words in reply.error["message"]


def test_prompt_log_probabilities(client: Client) -> None:
    positions = client.chat(prompt_logprobs=1, max_tokens=1).json["prompt_logprobs"]
    assert positions[0] is None and len(positions) == 18
    assert all(entry["rank"] >= 1 for position in positions[1:] for entry in position.values())


def test_the_request_s_own_id(client: Client) -> None:
    reply = client.chat(request_id="mine-1", max_tokens=1)
    assert reply.json["id"] == "chatcmpl-mine-1"
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/health", headers={"X-Request-Id": "a\nb"}).headers["x-request-id"] != "a\nb"
