"""POST /v1/completions: forms of prompts, echoes with log probabilities, several prompts as one stream."""

from __future__ import annotations

from typing import Any

import pytest
from asgi import Client

from dashinfer_lite import LLM, SamplingParams

FOX = "Long ago there lived a fox"


def test_a_text(client: Client, llm: LLM) -> None:
    found = client.complete(max_tokens=8).json
    (expected,) = llm.generate(FOX, SamplingParams(temperature=0, max_tokens=8))
    assert found["id"].startswith("cmpl-") and found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert found["usage"]["prompt_tokens"] == 6 and found["usage"]["completion_tokens"] == 8
    assert client.complete().json["usage"]["completion_tokens"] == 16  # OpenAI's default


def test_every_form_of_prompts(client: Client, llm: LLM) -> None:
    """A text, texts, token ids, lists of token ids: the same answers."""
    ids = llm.tokenizer.encode(FOX)
    (text,) = [choice["text"] for choice in client.complete(FOX, max_tokens=6).json["choices"]]
    for prompt, count in (([FOX], 1), (ids, 1), ([ids], 1), ([FOX, FOX], 2), ([ids, ids, ids], 3)):
        choices = client.complete(prompt, max_tokens=6).json["choices"]
        assert [(choice["index"], choice["text"]) for choice in choices] == [(at, text) for at in range(count)]
    two = client.complete(["Long ago", "Once"], n=2, max_tokens=4, temperature=1.0, seed=1).json
    assert [choice["index"] for choice in two["choices"]] == [0, 1, 2, 3]
    assert two["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", [[], [[]], "", [""], ["a", 1], [1, [2]], [[1], "a"], [4096], [-1], None, 5, {}])
def test_prompts_that_cannot_be(client: Client, prompt: Any) -> None:
    assert client.complete(prompt).status == 400
    assert client.complete(prompt).error["type"] == "invalid_request_error"


def test_echo_with_log_probabilities(client: Client, llm: LLM) -> None:
    """As evaluation harnesses ask: the prompt's tokens with their log probabilities, the first one's is null."""
    ids = llm.tokenizer.encode(FOX)
    (own,) = llm.generate(FOX, SamplingParams(temperature=0, max_tokens=2, logprobs=1, prompt_logprobs=1))
    for prompt in (FOX, ids):
        choice = client.complete(prompt, echo=True, logprobs=1, max_tokens=2).json["choices"][0]
        found = choice["logprobs"]
        assert choice["text"] == FOX + own.text == "".join(found["tokens"])
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        expected = [
            position[token].logprob
            for token, position in zip(ids[1:], (own.prompt_logprobs or [])[1:], strict=True)
            if position
        ]
        expected += [
            position[token].logprob
            for token, position in zip(own.outputs[0].token_ids, own.outputs[0].logprobs or [], strict=True)
        ]
        assert found["token_logprobs"][1:] == pytest.approx(expected)
        assert [FOX.find(token) for token in found["tokens"][:3]] == found["text_offset"][:3]
        for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
            assert 1 <= len(top) <= 2 and logprob in top.values() and max(top.values()) >= logprob


def test_scoring_without_an_answer(client: Client) -> None:
    found = client.complete(echo=True, logprobs=0, max_tokens=0).json
    assert found["choices"][0]["text"] == FOX and len(found["choices"][0]["logprobs"]["tokens"]) == 6
    assert found["usage"]["completion_tokens"] == 0 and found["choices"][0]["finish_reason"] == "length"
    assert client.complete(echo=True, max_tokens=3).json["choices"][0]["text"].startswith(FOX)
    assert client.complete(max_tokens=0).error["param"] == "max_tokens"
    assert client.complete(echo=True, stream=True).error["param"] == "echo"


def test_several_prompts_as_one_stream(client: Client) -> None:
    prompts = ["Long ago", "Once upon a time", FOX]
    whole = client.complete(prompts, n=2, max_tokens=12, seed=3, temperature=1.0, logprobs=1).json["choices"]
    stream = client.complete(
        prompts, n=2, max_tokens=12, seed=3, temperature=1.0, logprobs=1, stream=True,
        stream_options={"include_usage": True},
    ).chunks  # fmt: skip
    assert stream[-1]["choices"] == [] and stream[-1]["usage"]["completion_tokens"] == 72
    for choice in whole:
        pieces = [piece for chunk in stream for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]
        for name in ("tokens", "token_logprobs"):
            assert [item for piece in pieces for item in piece["logprobs"][name]] == choice["logprobs"][name]


def test_what_only_openai_has(client: Client) -> None:
    assert client.complete(suffix="end").error["param"] == "suffix"
    assert client.complete(best_of=2).error["param"] == "best_of"
    assert client.complete(best_of=2, n=2, max_tokens=1).status == 200
