"""Thoughts apart from answers, and how many tokens they have while they come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgi import STORY, Client
from hypothesis import given
from hypothesis import strategies as st

from dashinfer_lite import LLM
from dashinfer_lite.llm import demo_model_folder
from dashinfer_lite.server.thoughts import PART, ThoughtTokens
from dashinfer_lite.tools import ReasoningDelta, TextDelta

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: <think>\n"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The demo model, whose prompts end inside of its thoughts; it never comes out of them."""
    folder = tmp_path_factory.mktemp("thinker")
    shutil.copytree(demo_model_folder(), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with LLM(folder, kv_memory="8MiB", max_context=512, max_batch=2, threads=1) as llm:
        yield llm


def test_an_answer_that_is_all_thoughts(make_app: Callable[..., Any], thinker: LLM) -> None:
    """Whole, streamed and as a response the thoughts have the same tokens, about those that were generated."""
    client = Client(make_app(thinker))
    fields: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
    whole = client.chat(STORY, **fields).json
    message, usage = whole["choices"][0]["message"], whole["usage"]
    count = usage["completion_tokens_details"]["reasoning_tokens"]
    assert message["content"] == "" and len(message["reasoning_content"]) > 2 * PART
    assert 0.5 * usage["completion_tokens"] < count <= usage["completion_tokens"]
    chunks = client.chat(STORY, stream=True, stream_options={"continuous_usage_stats": True}, **fields).chunks
    counts = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in chunks]
    pieces = [chunk["choices"][0]["delta"].get("reasoning_content", "") for chunk in chunks]
    assert "".join(pieces) == message["reasoning_content"]
    assert counts[0] == 0 and counts[-1] == count and counts[len(counts) // 2] not in (0, count)
    hidden = client.chat(STORY, include_reasoning=False, **fields).json
    assert "reasoning_content" not in hidden["choices"][0]["message"] and hidden["usage"] == {
        **usage, "prompt_tokens_details": hidden["usage"]["prompt_tokens_details"],
    }  # fmt: skip
    usage = client.chat(STORY, max_tokens=200).json["usage"]
    count = usage["completion_tokens_details"]["reasoning_tokens"]
    for stream in (False, True):
        asked = {"input": STORY, "temperature": 0, "max_output_tokens": 200, "stream": stream}
        reply = client.post("/v1/responses", asked)
        response = json.loads(reply.events[-1])["response"] if stream else reply.json
        assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == count


@given(st.text(alphabet="ab ", max_size=1000), st.lists(st.integers(0, 1000), max_size=20))
def test_counts_do_not_depend_on_cuts(text: str, cuts: list[int]) -> None:
    """However the thoughts come: the same count, and what stands between them is no thought."""
    whole, cut = ThoughtTokens(words), ThoughtTokens(words)
    whole.add([ReasoningDelta(text)])
    ends = [*sorted(cuts), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        cut.add([ReasoningDelta(text[start:end]), TextDelta("a b c")])
        cut.total()
    assert cut.total() == whole.total()


def test_counting_costs_as_much_as_there_is_to_count() -> None:
    """Asked for after every word: a bounded part is encoded each time, not all of the thoughts."""
    most = total = 0

    def encode(text: str, _add_special_tokens: bool) -> list[int]:
        nonlocal most, total
        most, total = max(most, len(text)), total + len(text)
        return words(text, False)

    thoughts = ThoughtTokens(encode)
    for count in range(1, 3001):
        thoughts.add([ReasoningDelta(" word")])
        assert thoughts.total() == count
    assert most <= 2 * PART + len(" word") and total < 3000 * (2 * PART + 10)


def words(text: str, _add_special_tokens: bool) -> list[int]:
    """A token a word with the blanks before it."""
    return [0] * len(text.split())
