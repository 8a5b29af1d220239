"""Templates and grammars made to waste time: their request fails, and other people's streams go on."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi import Reply, call

from dashinfer_lite import LLM
from dashinfer_lite.llm import demo_model_folder

Make = Callable[..., Any]
STREAM = {
    "prompt": "Long ago", "max_tokens": 200, "ignore_eos": True, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip

TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}",
    "growth": "{% set n = namespace(s='aaaa') %}{% for i in range(90) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "of the request": "{% for a in x %}{% for b in x %}{% for c in x %}{{ a }}{% endfor %}{% endfor %}{% endfor %}",
}
SCHEMAS: dict[str, Any] = {
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}},
    "intersections": {"type": "string", "allOf": [{"pattern": f"(a|b){{{i},{i + 9}}}c"} for i in range(60)]},
    "repeats": {"type": "string", "pattern": "((a{0,999}){0,999}){0,999}"},
    "deep": json.loads('{"items":' * 300 + "{}" + "}" * 300),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LLM]]:
    """Models like the demo's with another chat template."""
    made: list[LLM] = []

    def make(template: str) -> LLM:
        folder = tmp_path_factory.mktemp("hostile")
        shutil.copytree(demo_model_folder(), folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").write_text(template)
        made.append(LLM(folder, kv_memory="8MiB", max_context=256, max_batch=2, threads=1))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


async def beside(app: Any, body: dict[str, Any]) -> Reply:
    """The answer to a conversation that wastes time, while another client's stream runs to its end."""
    stream = asyncio.ensure_future(call(app, "POST", "/v1/completions", STREAM))
    await asyncio.sleep(0.01)
    bomb = await call(app, "POST", "/v1/chat/completions", body)
    chunks = (await stream).chunks
    assert chunks[-1]["usage"]["completion_tokens"] == 200
    return bomb


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(make_app: Make, hostile: Callable[[str], LLM], name: str) -> None:
    llm = hostile(TEMPLATES[name])
    app = make_app(llm)
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 1,
        "chat_template_kwargs": {"x": list(range(2000))},
    }
    bomb = asyncio.run(beside(app, body))
    assert bomb.status == 400 and "chat template" in bomb.error["message"]
    assert str(Path(llm.info["model"]).parent) not in bomb.body.decode()


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(make_app: Make, name: str) -> None:
    app = make_app()
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[name], "strict": True}}
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "response_format": form}
    assert asyncio.run(beside(app, body)).status == (200 if name == "repeats" else 400)


def test_long_texts(make_app: Make) -> None:
    """A megabyte of one letter, of an emoji, of special tokens: refused for its length, and nothing waits for it."""
    app = make_app(max_body=16 << 20)
    for text in ("x" * 10**6, "🦊" * 250_000, "<|im_start|>" * 80_000, " " * 10**6):
        for path, body in (
            ("/v1/completions", {"prompt": text}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
            ("/v1/embeddings", {"input": text}),
        ):
            assert asyncio.run(call(app, "POST", path, body)).error["code"] == "context_length_exceeded"
