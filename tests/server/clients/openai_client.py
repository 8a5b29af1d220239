"""OpenAI's own Python client against a server: `python openai_client.py URL`. Prints what it did; asserts the rest."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SUM: Any = [{"role": "user", "content": "What is 17 + 25?"}]
FORECAST: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def chats(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=SUM, temperature=0, max_completion_tokens=20, store=True
    )
    assert whole.choices[0].message.content == "17 + 25 = 42" and whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None and whole.usage.total_tokens == whole.usage.prompt_tokens + 11
    stream = client.chat.completions.create(
        model=model, messages=SUM, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "17 + 25 = 42"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details if chunks[-1].usage else None}
    )
    several = client.chat.completions.create(
        model=model, messages=SUM, n=3, seed=7, temperature=1.0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    logprobs = several.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content[0].top_logprobs) == 2


def tools(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=FORECAST, tools=[WEATHER], temperature=0)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Paris"}
    assert answer.choices[0].finish_reason == "tool_calls"
    after: Any = [
        *FORECAST,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'},
    ]
    client.chat.completions.create(model=model, messages=after, tools=[WEATHER], max_tokens=8)
    forced = client.chat.completions.create(
        model=model,
        messages=SUM,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        stream=True,
    )
    pieces = [call for chunk in forced for call in chunk.choices[0].delta.tool_calls or ()]
    assert pieces[0].id and pieces[0].function and pieces[0].function.name == "get_weather"
    assert "city" in json.loads("".join(p.function.arguments or "" for p in pieces if p.function))


def structures(client: openai.OpenAI, model: str) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    about: Any = [{"role": "user", "content": "Give me a JSON object with the name Ada and the age 36."}]
    answer = client.chat.completions.create(model=model, messages=about, response_format=wanted, temperature=0)
    assert json.loads(answer.choices[0].message.content or "") == {"name": "Ada", "age": 36}
    chosen = client.completions.create(
        model=model, prompt="x", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert chosen.choices[0].text in ("yes", "no")


def completions(client: openai.OpenAI, model: str) -> None:
    scored = client.completions.create(model=model, prompt="Long ago", echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == "Long ago"
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.token_logprobs[0] is None
    both = client.completions.create(model=model, prompt=["Long ago", "Once"], max_tokens=4, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model=model, prompt="Long ago", max_tokens=4, temperature=0, stream=True)
    )
    assert text == both.choices[0].text


def embeddings(client: openai.OpenAI, model: str) -> None:
    plain = client.embeddings.create(model=model, input="a fox", encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model=model, input=["a fox", "a bear"]).data  # base64 on the wire
    assert max(abs(a - b) for a, b in zip(plain, packed[0].embedding, strict=True)) < 1e-6
    assert len(client.embeddings.create(model=model, input="a fox", dimensions=8).data[0].embedding) == 8


def responses(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="What is 17 + 25?", temperature=0, instructions=None)
    assert answer.output_text == "17 + 25 = 42" and answer.status == "completed"
    assert answer.usage is not None and answer.usage.output_tokens == 11
    with client.responses.stream(model=model, input="What is 17 + 25?", temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "17 + 25 = 42"
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    tool: Any = {"type": "function", "strict": False, **WEATHER["function"]}
    called = client.responses.create(model=model, input="What is the weather in Paris?", tools=[tool], temperature=0)
    call = called.output[0]
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}
    again: Any = [
        {"role": "user", "content": "What is the weather in Paris?"},
        *[item.model_dump(exclude_none=True) for item in called.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "clear"}'},
    ]
    client.responses.create(model=model, input=again, tools=[tool], max_output_tokens=8)
    short = client.responses.create(model=model, input="Tell me a story.", max_output_tokens=4, temperature=0)
    assert short.status == "incomplete" and short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


def errors(client: openai.OpenAI, model: str) -> None:
    try:
        client.chat.completions.create(model=model, messages=SUM, extra_body={"tempreature": 1})
    except openai.BadRequestError as error:
        assert error.param == "tempreature" and error.code == "unknown_parameter"
    else:
        raise AssertionError("an unknown parameter was accepted")
    try:
        client.chat.completions.create(model="another", messages=SUM)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("an unknown model was accepted")


def main(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    (served,) = client.models.list().data
    assert client.models.retrieve(served.id).id == served.id
    for check in (chats, tools, structures, completions, embeddings, responses, errors):
        check(client, served.id)
        print(check.__name__)
    print(f"openai {openai.__version__}: done")


if __name__ == "__main__":
    main(sys.argv[1])
