"""Guided answers and tool calls of the demo model, through every door: batches, streams, coroutines, n, seeds."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite import LLM, AsyncLLM, Guided, RequestError, SamplingParams
from dashinfer_lite.grammar.compiler import GrammarCompiler

pytest.importorskip("llguidance", reason="guided output needs llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
JSON, REGEX = Guided(json_schema=PERSON), Guided(regex=r"[A-Z][a-z]{2,8}, \d{1,2}")
CHOICE = Guided(choice=["yes", "no", "no, thanks"])
PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=160)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The demo model with a KV cache that a dozen answers exhaust, and no deadline that a busy machine misses."""
    pytest.importorskip("dashinfer_lite._native", reason="the package was not built")
    with LLM(kv_memory="1MiB", max_context=256, max_batch=8) as model:
        model._grammars = model.engine._grammars = GrammarCompiler(
            model.tokenizer, model._model.program.vocab_size, deadline_s=200
        )
        yield model


def is_valid(guided: Guided, text: str) -> bool:
    if guided.json_schema is not None:
        value = json.loads(text)
        return (
            list(value) == ["name", "age", "likes"]
            and isinstance(value["name"], str)
            and len(value["name"]) <= 10
            and value["age"] in range(121)
            and len(value["likes"]) <= 2
            and set(value["likes"]) <= {"tea", "rain"}
        )
    if guided.regex is not None:
        return re.fullmatch(guided.regex, text) is not None
    return text in (guided.choice or ())


@pytest.mark.parametrize("guided", [JSON, REGEX, CHOICE], ids=lambda guided: guided.kind)
def test_answers_are_valid(llm: LLM, guided: Guided) -> None:
    """Greedy and drawn, several of them, with log probabilities; the same seed gives the same answers again."""
    params = replace(PARAMS, n=4, guided=guided, logprobs=1)
    first, second = (llm.generate(["The fox is"], params)[0] for _ in range(2))
    for output, again in zip(first.outputs, second.outputs, strict=True):
        assert output.finish_reason == "stop" and is_valid(guided, output.text)
        assert output.token_ids == again.token_ids
        assert output.logprobs is not None and len(output.logprobs) == len(output.token_ids)
    greedy = llm.chat([{"role": "user", "content": "Hi!"}], replace(PARAMS, temperature=0, guided=guided))
    assert is_valid(guided, greedy.text)


def test_guided_and_free_requests_together(llm: LLM) -> None:
    """They preempt each other and share prefixes; free answers are those of lone requests, guided ones valid."""
    prompts = [f"{'Once upon a time there was a small red fox. ' * 4}Story {i % 5}:" for i in range(12)]
    kinds = (replace(PARAMS, max_tokens=60), *(replace(PARAMS, guided=guided) for guided in (JSON, REGEX, CHOICE)))
    own = [replace(kinds[i % 4], seed=i) for i in range(12)]
    alone = [llm.generate(prompt, params)[0] for prompt, params in zip(prompts, own, strict=True)]
    before = llm.stats()["preemptions"]
    for single, together, params in zip(alone, llm.generate(prompts, own), own, strict=True):
        assert single.outputs[0].token_ids == together.outputs[0].token_ids
        if params.guided is not None:
            assert is_valid(params.guided, together.text)
    assert llm.stats()["preemptions"] > before
    assert llm.stats()["prefix_hit_tokens"] > 0


def test_streams_and_coroutines(llm: LLM) -> None:
    params = replace(PARAMS, guided=JSON)
    request = llm.submit("A person:", params)
    pieces = list(request)
    assert len(pieces) > 3 and is_valid(JSON, "".join(pieces)) and request.result().text == "".join(pieces)

    async def together() -> list[str]:
        model = AsyncLLM(llm=llm)
        streamed = "".join([piece async for piece in model.stream("A person:", params)])
        await model.prepare(replace(params, guided=REGEX))
        submitted = await model.submit("A person:", replace(params, guided=REGEX))
        generated = await model.generate(["A", "B"], replace(params, guided=CHOICE))
        chatted = await model.chat([{"role": "user", "content": "Hi!"}], params)
        with pytest.raises(RequestError, match="keyword 'not'"):
            await model.generate("A", replace(params, guided=Guided(json_schema={"not": {}})))
        return [streamed, submitted.text, *(output.text for output in generated), chatted.text]

    streamed, submitted, first, second, chatted = asyncio.run(together())
    assert streamed == "".join(pieces) and is_valid(JSON, chatted)
    assert is_valid(REGEX, submitted) and is_valid(CHOICE, first) and is_valid(CHOICE, second)


def test_refusals_name_the_prompt(llm: LLM) -> None:
    good, bad = replace(PARAMS, guided=CHOICE), replace(PARAMS, guided=Guided(regex="(a"))
    with pytest.raises(RequestError, match=r"^prompt 1: the regex cannot be used: .*unclosed group"):
        llm.generate(["a", "b"], [good, bad])
    with pytest.raises(RequestError, match="unclosed group"):
        llm.submit("a", bad)


def test_hostile_grammars_beside_a_stream(llm: LLM) -> None:
    """A stream goes on while grammars of every unpleasant kind come in; each ends, in an answer or in an error."""
    hostile = [
        Guided(regex="(a{1000}){1000}"),
        Guided(regex="((a?){100}){100}a{100}"),
        Guided(grammar='start: a a a a a\na: a a | "a" | "b" | ""'),
        Guided(json_schema={"enum": [f"value {i}" for i in range(4000)]}),
        Guided(json_schema={"properties": {f"p{i}": {"pattern": f"^{i}.*a"} for i in range(500)}}),
    ]
    asked = threading.Event()

    def ask() -> None:
        for guided in hostile:
            try:
                llm.generate("x", SamplingParams(max_tokens=8, guided=guided))
            except RequestError:
                continue
        asked.set()

    thread = threading.Thread(target=ask)
    alone = llm.generate("Once upon", replace(PARAMS, max_tokens=200, ignore_eos=True))[0].text
    thread.start()
    while not asked.is_set():
        assert llm.generate("Once upon", replace(PARAMS, max_tokens=200, ignore_eos=True))[0].text == alone
    thread.join()


def test_many_schemas_take_bounded_memory(llm: LLM) -> None:
    """What is kept does not grow with the number of schemas that were asked for."""

    def use(first: int) -> int:
        for i in range(first, first + 300):
            schema = {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": f"^a{{{i}}}b"}}}
            llm.prepare(SamplingParams(guided=Guided(json_schema=schema)))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    warm = use(0)
    assert use(300) - warm < 24 << 20
    grammars = llm._grammars
    assert grammars is not None and len(grammars._kept) <= 128


def test_a_tool_loop(llm: LLM) -> None:
    """The demo model calls the tool by itself, is answered, and answers; forced calls come where it would not."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    plan = llm.plan_tools(TOOLS)
    output = llm.chat(messages, plan.params(SamplingParams(temperature=0, max_tokens=80)), **plan.template)
    parsed = plan.parse(output.text, output.prompt)
    (call,) = parsed.calls
    assert (call.name, json.loads(call.arguments), parsed.text) == ("get_weather", {"city": "Paris"}, "")
    function = {"name": call.name, "arguments": call.arguments}
    messages.append({"role": "assistant", "content": "", "tool_calls": [{"id": call.id, "function": function}]})
    messages.append({"role": "tool", "content": '{"temperature": 21}', "tool_call_id": call.id})
    prompt = llm.render_chat(messages, **plan.template)
    assert '"arguments": {"city": "Paris"}}' in prompt
    assert not plan.parse(llm.chat(messages, plan.params(), **plan.template).text).calls

    forced = llm.plan_tools(TOOLS, "required", parallel_tool_calls=False)
    params = forced.params(SamplingParams(temperature=0, max_tokens=80))
    request = llm.submit(messages=[{"role": "user", "content": "Tell me a story."}], params=params, **forced.template)
    (call,) = forced.parse("".join(request)).calls
    assert call.name == "get_weather" and set(json.loads(call.arguments)) >= {"city"}


def test_models_without_tools() -> None:
    golden = Path(__file__).resolve().parent.parent / "golden"
    with LLM(golden / "qwen2_5", kv_memory="16MiB", max_context=64) as llm:
        assert llm.plan_tools().parse("plain").text == "plain"
        with pytest.raises(RequestError, match="no format of tool calls that is supported"):
            llm.plan_tools(TOOLS)
