"""POST /v1/embeddings, /tokenize and /detokenize."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from asgi import Client

from dashinfer_lite import LLM


def test_embeddings(client: Client, llm: LLM) -> None:
    """Those of the Python interface, for every form of input, pooling and encoding."""
    texts = ["a fox", "What is 17 + 25?"]
    for pooling in ("last", "mean"):
        own = [found.embedding for found in llm.embed(texts, pooling=pooling)]  # type: ignore[arg-type]
        found = client.post("/v1/embeddings", {"input": texts, "pooling": pooling}).json
        assert [item["embedding"] for item in found["data"]] == [pytest.approx(vector, abs=1e-6) for vector in own]
        assert [item["index"] for item in found["data"]] == [0, 1] and found["usage"]["prompt_tokens"] == 12
        ids = [llm.tokenizer.encode(text) for text in texts]
        packed = client.post("/v1/embeddings", {"input": ids, "pooling": pooling, "encoding_format": "base64"}).json
        for item, vector in zip(packed["data"], own, strict=True):
            numbers = struct.unpack(f"<{len(vector)}f", base64.b64decode(item["embedding"]))
            assert list(numbers) == pytest.approx(vector, abs=1e-6)
    (raw,) = llm.embed("a fox", normalize=False)
    plain = client.post("/v1/embeddings", {"input": "a fox", "normalize": False}).json
    assert plain["data"][0]["embedding"] == pytest.approx(raw.embedding)
    short = client.post("/v1/embeddings", {"input": "a fox", "dimensions": 16}).json["data"][0]["embedding"]
    assert len(short) == 16 and sum(value * value for value in short) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "dimensions": 257}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": ["x"] * 257}, "input"),
        ({}, "input"),
    ],
)
def test_embeddings_that_cannot_be(client: Client, fields: Any, param: str) -> None:
    reply = client.post("/v1/embeddings", fields)
    assert reply.status == 400 and reply.error["param"] == param


def test_tokens_there_and_back(client: Client, llm: LLM) -> None:
    text = "Once upon a time <tool_call> there was a naïve fox 🦊."
    found = client.post("/tokenize", {"prompt": text, "add_special_tokens": False, "return_token_strs": True}).json
    assert found["tokens"] == llm.tokenizer.encode(text, False) and found["count"] == len(found["tokens"])
    assert len(found["token_strs"]) == found["count"] and found["max_model_len"] == 512
    assert client.post("/detokenize", {"tokens": found["tokens"]}).json == {"prompt": text}
    messages = [{"role": "user", "content": "Hi"}]
    chat = client.post("/tokenize", {"messages": messages}).json["tokens"]
    assert client.post("/detokenize", {"tokens": chat}).json["prompt"] == llm.render_chat(messages)
    shorter = client.post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json["tokens"]
    assert chat[: len(shorter)] == shorter and len(shorter) < len(chat)
    for body in ({}, {"prompt": "x", "messages": messages}, {"tokens": [1]}, {"prompt": "\ud800"}):
        assert client.post("/tokenize", body).status == 400
    assert client.post("/detokenize", {"tokens": [2**31]}).status == 400
