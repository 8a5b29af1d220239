"""POST /v1/responses: what OpenAI's newer interface gives without a store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgi import STORY, SUM, WEATHER, Client, Reply

TOOL = {"type": "function", **WEATHER["function"]}


def respond(client: Client, asked: Any = "What is 17 + 25?", **fields: Any) -> Reply:
    return client.post("/v1/responses", {"input": asked, "temperature": 0, **fields})


def events(reply: Reply) -> list[dict[str, Any]]:
    """The events, whose names and numbers are checked."""
    blocks = reply.body.decode().removesuffix("\n\n").split("\n\n")
    found = []
    for number, block in enumerate(block for block in blocks if not block.startswith(":")):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}" and found[-1]["sequence_number"] == number
    return found


def test_an_answer(client: Client) -> None:
    found = respond(client, instructions="Be brief.", metadata={"a": "b"}, store=True).json
    assert (found["object"], found["status"], found["store"]) == ("response", "completed", False)
    (item,) = found["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [
        {"type": "output_text", "text": item["content"][0]["text"], "annotations": [], "logprobs": []}
    ]
    assert found["instructions"] == "Be brief." and found["metadata"] == {"a": "b"}
    assert found["usage"]["total_tokens"] == found["usage"]["input_tokens"] + found["usage"]["output_tokens"]


def test_the_order_of_events(client: Client) -> None:
    found = events(respond(client, stream=True))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "".join(event["delta"] for event in found if "delta" in event) == SUM == found[-4]["text"]
    final = found[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == SUM and final["usage"]["output_tokens"] == 11
    assert found[0]["response"]["output"] == [] and found[0]["response"]["status"] == "in_progress"


def test_cut_short(client: Client) -> None:
    found = respond(client, STORY, max_output_tokens=4).json
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert found["output"][0]["status"] == "incomplete"
    assert events(respond(client, STORY, max_output_tokens=4, stream=True))[-1]["type"] == "response.incomplete"


def test_calls_and_what_they_gave(client: Client) -> None:
    found = respond(client, "What is the weather in Paris?", tools=[TOOL]).json
    (call,) = found["output"]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    kinds = [
        event["type"] for event in events(respond(client, "Hi", tools=[TOOL], tool_choice="required", stream=True))
    ]
    assert kinds[2:4] == ["response.output_item.added", "response.function_call_arguments.delta"]
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    conversation = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is the weather in Paris?"}]},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": '{"sky": "clear"}'},
    ]
    again = respond(client, conversation, tools=[TOOL], max_output_tokens=24)
    assert again.status == 200 and again.json["usage"]["input_tokens"] > found["usage"]["input_tokens"]
    named = respond(client, "Hi", tools=[TOOL], tool_choice={"type": "function", "name": "get_weather"}).json
    assert named["output"][0]["type"] == "function_call"
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    assert respond(client, "Hi", tools=[TOOL], tool_choice=some).json["output"][0]["type"] == "function_call"


def test_forms_and_log_probabilities(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    text = respond(client, text=wanted).json["output"][0]["content"][0]["text"]
    assert isinstance(json.loads(text)["n"], int)
    found = respond(client, include=["message.output_text.logprobs"], top_logprobs=2).json["output"][0]["content"][0]
    assert [len(entry["top_logprobs"]) for entry in found["logprobs"]] == [2] * len(found["logprobs"])
    assert b"".join(bytes(entry["bytes"]) for entry in found["logprobs"]).decode() == SUM


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"content": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "output": "f"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
    ],
)
def test_what_it_does_not_do(client: Client, fields: Any, param: str) -> None:
    reply = client.post("/v1/responses", {"input": "Hi", **fields})
    assert reply.status == 400 and reply.error["param"] == param
