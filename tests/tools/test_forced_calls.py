"""Grammars of calls: whatever the masks allow is read back by the parser as proper calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dashinfer_lite.errors import RequestError
from dashinfer_lite.grammar.compiler import GrammarCompiler
from dashinfer_lite.guided import Guided
from dashinfer_lite.loading import demo_model_folder
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.text import Tokenizer, load_tokenizer
from dashinfer_lite.tools import Parsed, ToolPlan
from dashinfer_lite.tools.dialect import Dialect
from dashinfer_lite.tools.glm import ChatGlm3, Glm4
from dashinfer_lite.tools.hermes import Hermes
from dashinfer_lite.tools.llama3 import Llama3
from dashinfer_lite.tools.mistral import Mistral

pytest.importorskip("llguidance", reason="forced calls need llguidance")

DIALECTS: dict[str, Callable[[], Dialect]] = {
    "hermes": Hermes,
    "llama3": Llama3,
    "mistral": Mistral,
    "mistral with names": lambda: Mistral(has_args=True),
    "glm4": Glm4,
    "chatglm3": ChatGlm3,
}


def function(name: str, parameters: dict[str, Any] | None = None, strict: bool | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


CITY = closed(["city"], city={"enum": ["Paris", "Rome"]}, days={"type": "integer", "minimum": 1, "maximum": 9})
OPTIONAL = closed([], a={"type": "boolean"}, b={"const": "b"}, c={"$ref": "#/$defs/short"})
OPTIONAL["$defs"] = {"short": {"type": "string", "maxLength": 4}}
TOOLS = [function("get_weather", CITY), function("set", OPTIONAL)]
STRICT = [function("get_weather", CITY, strict=True), function("set", OPTIONAL)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_model_folder())


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, deadline_s=200)


def walk(
    grammars: GrammarCompiler,
    tokenizer: Tokenizer,
    guided: Guided,
    rng: np.random.Generator,
    start: str = "",
    names: dict[int, str] | None = None,
) -> str | None:
    """A text of tokens drawn among those that the masks allow, first those that spell `start`; None without an end."""
    matcher = grammars.matcher(guided)
    mask = np.zeros(tokenizer.vocab_size // 32 + 1, np.uint32)
    begin, data = start.encode(), b""
    for _ in range(2000):
        matcher.fill_mask(mask)
        allowed = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0]
        allowed = allowed[allowed < tokenizer.vocab_size]
        if len(data) >= len(begin) and matcher.is_accepting and (not len(allowed) or rng.random() < 0.3):
            return data.decode()
        if len(data) < len(begin):
            rest = begin[len(data) :]
            fitting = [
                i for i in allowed if _bytes(tokenizer, i).startswith(rest) or rest.startswith(_bytes(tokenizer, i))
            ]
            assert fitting, f"{data!r} must not go on with {rest!r}"
            token = int(max(fitting, key=lambda i: len(_bytes(tokenizer, i))))
        else:
            token = int(rng.choice(allowed))
        data += names[token].encode() if names and token in names else _bytes(tokenizer, token)
        matcher.accept(token)
        if matcher.is_complete:
            return data.decode()
    return None


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    return tokenizer.token_bytes(int(token)) or b""


def check(parsed: Parsed, most: int) -> None:
    """One to `most` calls, with arguments as their schemas say."""
    assert 1 <= len(parsed.calls) <= most
    for call in parsed.calls:
        arguments = json.loads(call.arguments)
        if call.name == "get_weather":
            assert arguments["city"] in ("Paris", "Rome") and set(arguments) <= {"city", "days"}
            assert 1 <= arguments.get("days", 1) <= 9
        else:
            assert call.name == "set" and set(arguments) <= {"a", "b", "c"} and arguments.get("b", "b") == "b"
            assert arguments.get("a", True) in (True, False) and len(arguments.get("c", "")) <= 4


@pytest.mark.parametrize("name", DIALECTS)
def test_required_calls(grammars: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    """Any of the tools or the named one, one call or several, and nothing but calls."""
    rng = np.random.default_rng(0)
    counts: set[int] = set()
    for choice, is_parallel in (("required", True), ("required", False), ("get_weather", True)):
        asked = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
        plan = ToolPlan(DIALECTS[name](), TOOLS, asked, is_parallel)
        guided = plan.params().guided
        assert guided is not None
        for _ in range(6):
            text = walk(grammars, tokenizer, guided, rng)
            assert text is not None
            parsed = plan.parse(text)
            check(parsed, 16 if is_parallel and choice == "required" else 1)
            assert not parsed.text
            counts.add(len(parsed.calls))
            if choice != "required":
                assert parsed.calls[0].name == choice
    assert 1 in counts and max(counts) > 1


@pytest.mark.parametrize("name", DIALECTS)
def test_special_tokens_in_calls(grammars: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    """Where the markers are special tokens the grammar asks for these, and the text must show them."""
    dialect = DIALECTS[name]()
    ids = dict(zip(dialect.markers, sorted(tokenizer.special_ids), strict=False))
    names = {token: marker for marker, token in ids.items()}
    for choice, tools in (("required", TOOLS), ("auto", STRICT)):
        plan = ToolPlan(dialect, tools, choice, special=ids.get)
        params = plan.params()
        assert params.guided is not None and not params.skip_special_tokens
        begin = "set\n" if "glm" in name else '{"name": "set"' if name == "llama3" else ""
        seen = [
            walk(grammars, tokenizer, params.guided, np.random.default_rng(seed), begin, names) for seed in range(8)
        ]
        for text in seen:
            if text is not None and (choice == "required" or any(marker in text for marker in ids)):
                check(plan.parse(text), 16)
    assert ToolPlan(dialect, TOOLS, "auto").params() == SamplingParams()


@pytest.mark.parametrize("name", DIALECTS)
def test_strict_calls_among_text(grammars: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    """Text is free; a call that has begun is a proper one to its end."""
    plan = ToolPlan(DIALECTS[name](), STRICT, "auto")
    guided = plan.params().guided
    assert guided is not None
    rng = np.random.default_rng(1)
    prose = {"glm4": "\nHello {there", "chatglm3": "\nHello {there"}.get(name, "Hello {there")
    text = walk(grammars, tokenizer, guided, rng, prose)
    assert text is None or text.startswith(prose)
    begin = {
        "hermes": "Well.\n<tool_call>",
        "llama3": "{",
        "mistral": "Well. [TOOL_CALLS]",
        "mistral with names": "[TOOL_CALLS]",
    }.get(name, "get_weather\n")
    found = 0
    for _ in range(8):
        text = walk(grammars, tokenizer, guided, rng, begin)
        if text is not None:
            check(plan.parse(text), 20)
            found += 1
    assert found
    with pytest.raises(AssertionError, match="must not go on with"):
        walk(grammars, tokenizer, guided, rng, begin + "nothing of the kind")


def test_thoughts_before_forced_calls(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(2)
    thoughts, call = "Let me think: <a> {b}", '<tool_call>\n{"name": "set", "arguments": {}}\n</tool_call>'
    for at_once, whole in ((False, f"<think>{thoughts}</think>\n\n{call}"), (True, f"{thoughts}</think>{call}")):
        plan = ToolPlan(Hermes(), TOOLS, "required", False, thinks=True, thinks_at_once=at_once)
        guided = plan.params().guided
        assert guided is not None
        assert walk(grammars, tokenizer, guided, rng, whole) == whole
        parsed = plan.parse(whole)
        assert (parsed.text, parsed.reasoning, parsed.calls[0].name) == ("", thoughts, "set")
        if not at_once:
            assert walk(grammars, tokenizer, guided, rng, call) == call


def test_keywords_that_cannot_be_enforced(grammars: GrammarCompiler) -> None:
    """A strict tool is refused by name; for others the rest of the schema holds."""
    unique = closed(["x"], x={"type": "array", "items": {"type": "integer"}, "uniqueItems": True})
    with pytest.raises(RequestError, match=r"tools\[0\]: parameters: .* at #/properties/x .* 'uniqueItems'"):
        ToolPlan(Hermes(), [function("f", unique, strict=True)], "required")
    for make in DIALECTS.values():
        guided = ToolPlan(make(), [function("f", unique)], "required").params().guided
        assert guided is not None
        grammars.compile(guided)


WRONG_TOOLS: list[tuple[Any, str]] = [
    ("f", "tools must be a list, not str"),
    ([{}], r"tools\[0\] must be an object like"),
    ([function("f"), {"type": "function", "function": "f"}], r"tools\[1\] must be an object like"),
    ([function("no blanks")], "the name is 'no blanks'"),
    ([function("f" * 65)], "the name is"),
    ([function("f"), function("f")], "several tools with the name 'f'"),
    ([function("f", strict="yes")], "strict is 'yes'"),  # type: ignore[arg-type]
    ([function("f", parameters=[])], "parameters must be a JSON schema"),  # type: ignore[arg-type]
    ([function("f", parameters={"a": {1, 2}})], "parameters is no JSON"),
    ([function(f"f{i}") for i in range(129)], "there are 129 tools; at most 128"),
]


@pytest.mark.parametrize(("tools", "reason"), WRONG_TOOLS)
def test_wrong_tools(tools: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        ToolPlan(Hermes(), tools)


def test_choices() -> None:
    assert ToolPlan(None, None).choice.mode == "none"
    assert ToolPlan(Hermes(), TOOLS).choice.mode == "auto"
    plan = ToolPlan(Hermes(), TOOLS, "none")
    call = '<tool_call>{"name": "set"}</tool_call>'
    assert plan.template == {} and plan.parse(call).text == call
    assert ToolPlan(Hermes(), TOOLS).template == {"tools": TOOLS}
    for choice in (
        "any",
        5,
        {"type": "function", "function": {"name": "other"}},
        {"type": "function"},
        {"name": "set"},
    ):
        with pytest.raises(RequestError, match="tool_choice "):
            ToolPlan(Hermes(), TOOLS, choice)
    with pytest.raises(RequestError, match="and there are no tools"):
        ToolPlan(Hermes(), [], "required")
    with pytest.raises(RequestError, match="parallel_tool_calls is 1"):
        ToolPlan(Hermes(), TOOLS, parallel_tool_calls=1)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no format of tool calls that is supported"):
        ToolPlan(None, TOOLS)
    with pytest.raises(RequestError, match="guided and have its tool calls forced"):
        ToolPlan(Hermes(), TOOLS, "required").params(SamplingParams(guided=Guided(regex="a")))
    assert ToolPlan(Hermes(), TOOLS).params(SamplingParams(guided=Guided(regex="a"))).guided == Guided(regex="a")
