"""Parsers of tool calls and thoughts: what they find, that cuts change nothing, and that nothing breaks them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dashinfer_lite.tools import OutputParser, Parsed, TextDelta, ToolCallDelta, parse
from dashinfer_lite.tools.calls import MAX_CALL, PlainText
from dashinfer_lite.tools.detect import find_dialect
from dashinfer_lite.tools.glm import ChatGlm3, Glm4
from dashinfer_lite.tools.hermes import Hermes
from dashinfer_lite.tools.llama3 import Llama3
from dashinfer_lite.tools.mistral import Mistral
from dashinfer_lite.tools.python_call import read_python_call
from dashinfer_lite.tools.reasoning import ReasoningParser

NAMES = frozenset({"get_weather", "add"})
PARSERS: dict[str, Callable[[], OutputParser]] = {
    "hermes": lambda: Hermes().parser(NAMES),
    "llama3": lambda: Llama3().parser(NAMES),
    "mistral": lambda: Mistral().parser(NAMES),
    "glm4": lambda: Glm4().parser(NAMES),
    "chatglm3": lambda: ChatGlm3().parser(NAMES),
}
PARSERS |= {
    "thoughts": lambda: ReasoningParser(PlainText(), is_open=False),
    "open thoughts and hermes": lambda: ReasoningParser(Hermes().parser(NAMES), is_open=True),
}

WEATHER = {"city": "Paris", "note": 'a "}</tool_call>" ]'}
W = json.dumps(WEATHER)
GOOD: dict[str, list[tuple[str, str, list[tuple[str, object]]]]] = {
    "hermes": [
        (f'Let me see.\n<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>',
         "Let me see.", [("get_weather", WEATHER)]),
        ('<tool_call>{"name": "add", "arguments": {}}</tool_call>\n<tool_call>\n{"arguments":{"a":1},"name":"add"}\n'
         "</tool_call>\n bye ", "bye ", [("add", {}), ("add", {"a": 1})]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1.50}"}', "", [("add", {"a": 1.5})]),
        ('<tool_call>\n{"name": "add"}\n</tool_c', "", [("add", {})]),
    ],
    "llama3": [
        (f'{{"name": "get_weather", "parameters": {W}}}', "", [("get_weather", WEATHER)]),
        (f'\n<|python_tag|>{{"name": "add", "parameters": {W}}}; {{"name": "add", "arguments": {{}}}}',
         "", [("add", WEATHER), ("add", {})]),
        ('Well. <|python_tag|>{"name": "add", "parameters": {}}', "Well.", [("add", {})]),
    ],
    "mistral": [
        (f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {W}}}, {{"name": "add", "arguments": {{}}, "id": "1"}}]',
         "", [("get_weather", WEATHER), ("add", {})]),
        (f"Hm.[TOOL_CALLS]get_weather[ARGS]{W}[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS] {{}}",
         "Hm.", [("get_weather", WEATHER), ("add", {})]),
        ("[TOOL_CALLS]add{}", "", [("add", {})]),
    ],
    "glm4": [
        (f"get_weather\n{W}", "", [("get_weather", WEATHER)]),
        (f"\nget_weather \n{W}<|assistant|>add\n{{}}\nadd\n{{}}",
         "", [("get_weather", WEATHER), ("add", {}), ("add", {})]),
        (f"I look.\n<|assistant|>get_weather\n{W}", "I look.", [("get_weather", WEATHER)]),
    ],
    "chatglm3": [
        ("get_weather\n ```python\ntool_call(city='Paris', days=[1, -2.5, True, None], x={\"a\": 'b\\n'})\n```",
         "", [("get_weather", {"city": "Paris", "days": [1, -2.5, True, None], "x": {"a": "b\n"}})]),
        ("add\n```python\ntool_call()\n```<|assistant|>\n And so on", "<|assistant|>\n And so on", [("add", {})]),
    ],
}  # fmt: skip
TEXTS = {
    "hermes": [
        "<tool_call>", "<tool_call>{", "<tool_call>x</tool_call>", "<tool_call>{}</tool_call>", "a < b <tool_cal",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": []}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', '<tool_call>{"name": "add"} </tool_cool>',
        '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>', "<tool_call>{'name': 'add'}</tool_call>",
        '<tool_call>{"name": "add", "arguments": ' + '{"a":' * 80 + "1" + "}" * 81 + "</tool_call>", " plain \n\n",
        '<tool_call>{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
        "<tool_call>" + " " * 9000 + "{",
    ],
    "llama3": ['{"a": 1}', "{", '{"name": "other", "parameters": {}}', "<|python_tag|>print(1)", "hello {", "<|python",
               '{"name": "add", "parameters": 5} and more'],
    "mistral": ["[TOOL_CALLS]", "[TOOL_CALLS] []", "[TOOL_CALLS] [1]", "[TOOL_CALLS]other[ARGS]{}", "[TOOL_CALLS]add",
                '[TOOL_CALLS] [{"name": "add", "arguments": {}}, {"name": "other"}]', "[TOOL_CALLS]" + " " * 300 + "[",
                "[TOOL_CALLS]add[ARGS][]", "[TOOL_CALLS]" + "a" * 300 + "{}", "[TOOL_CALLS] ", "[TOOL"],
    "glm4": ["hello\n{}", "add", "add\n", "add\nx", "add\n{", "x" * 200 + "\n{}", "\n hello", "add\n[1]",
             "<|assistant|>"],
    "chatglm3": ["add\n{}", "add\n```python\ntool_call(", "add\n```python\nf(a=__import__('os'))\n```", "add\n```",
                 "add\n```python\ntool_call(1)\n```", "add\n```python\ntool_call(a=1, a=2)\n```", "\n hi"],
}  # fmt: skip


def cut(parser: OutputParser, pieces: Sequence[str]) -> Parsed:
    parsed = Parsed()
    for piece in pieces:
        parsed.add(parser.push(piece))
    parsed.add(parser.finish())
    return parsed


def content(parsed: Parsed) -> tuple[str, str, list[tuple[str, object]]]:
    return parsed.text, parsed.reasoning, [(call.name, call.arguments) for call in parsed.calls]


@pytest.mark.parametrize("name", GOOD)
def test_calls(name: str) -> None:
    """However the answer is cut in two, and one character at a time."""
    for whole, text, calls in GOOD[name]:
        cuts = [[whole[:i], whole[i:]] for i in range(len(whole) + 1)]
        for pieces in [*cuts, list(whole)]:
            parsed = cut(PARSERS[name](), pieces)
            assert (parsed.text, parsed.reasoning) == (text, "")
            assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls
            assert len({call.id for call in parsed.calls}) == len(calls)


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_call_is_text(name: str) -> None:
    for whole in TEXTS[name]:
        for pieces in ([whole], list(whole)):
            assert content(cut(PARSERS[name](), pieces)) == (whole, "", [])


PIECES = [
    *("<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|assistant|>", "<think>"),
    *("</think>", "```python", "```", "tool_call(a='x')", "get_weather", "add", "add\n", "\n", " ", ";", "{", "}", "["),
    *("]", '"', "\\", '{"name": "add", "arguments": {"a": "b"}}', '"name"', "text", "<", "é", "\u3000", "{}"),
    " " * 5000,
]
answers = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=60)


@pytest.mark.parametrize("name", PARSERS)
@given(answer=answers, data=st.data())
@example(answer="<tool_call>" + " " * 5000 + "<tool_call>{}", data=None)
def test_cuts_change_nothing(name: str, answer: str, data: st.DataObject | None) -> None:
    """And what is shown never exceeds the answer: without calls and thoughts it is the answer."""
    whole = parse(PARSERS[name](), answer)
    if data is None:
        pieces = list(answer)
    else:
        places = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=30)))
        pieces = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    assert content(cut(PARSERS[name](), pieces)) == content(whole)
    for call in whole.calls:
        assert call.name in NAMES and isinstance(json.loads(call.arguments), dict)
    if not whole.calls and "thoughts" not in name:
        assert whole.text == answer


@pytest.mark.parametrize(
    ("template", "kind", "name"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "", "hermes"),
        ("<tool_call><function=", "", None),
        ("<tool_call><arg_key>", "", None),
        ("{{ 'ipython' }}<|python_tag|>", "", "llama3"),
        ("[AVAILABLE_TOOLS][TOOL_CALLS]", "", "mistral"),
        ("[gMASK]<sop>{% for tool in item['tools'] %}", "tiktoken (GLM-4)", "glm4"),
        ("[gMASK]<sop>", "tokenizer.json", None),
        ("", "tiktoken (GLM-4)", "glm4"),
        ("", "sentencepiece (ChatGLM3)", "chatglm3"),
        ("{{ messages }}", "tokenizer.json", None),
        ("", "sentencepiece", None),
    ],
)
def test_dialects_are_found(template: str, kind: str, name: str | None) -> None:
    dialect = find_dialect(template, kind)
    assert (None if dialect is None else dialect.name) == name


def test_thoughts() -> None:
    for whole, is_open, text, thoughts in (
        ("<think>\nhm, hm\n</think>\n\nYes. ", False, "Yes. ", "hm, hm"),
        (" \n<think></think>Yes", False, "Yes", ""),
        ("hm\n\nhm </think> Yes</think>", True, "Yes</think>", "hm\n\nhm"),
        ("<think>never closed </thin", False, "", "never closed </thin"),
        ("No <think>thoughts</think>", False, "No <think>thoughts</think>", ""),
        (" <thin", False, " <thin", ""),
        ("", True, "", ""),
    ):
        for pieces in ([whole], list(whole)):
            parsed = cut(ReasoningParser(PlainText(), is_open), pieces)
            assert (parsed.text, parsed.reasoning.rstrip()) == (text, thoughts)
    answer = 'so</think>\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    parsed = parse(PARSERS["open thoughts and hermes"](), answer)
    assert (parsed.text, parsed.reasoning, [call.name for call in parsed.calls]) == ("", "so", ["add"])


def test_deltas_come_early_and_in_order() -> None:
    """Text is not held back longer than needed; a call's id and name come before its arguments."""
    parser = PARSERS["hermes"]()
    assert parser.push("Hello <b") == [TextDelta("Hello <b")]
    assert parser.push(" \n<tool") == []
    assert parser.push("_call>") == []
    name, arguments = parser.push('{"name": "add", "arguments": {"a": 1}}</tool_call>')
    assert isinstance(name, ToolCallDelta) and isinstance(arguments, ToolCallDelta)
    assert (name.index, name.name, name.arguments_delta) == (0, "add", "") and name.id
    assert arguments == ToolCallDelta(0, arguments_delta='{"a": 1}')
    assert parser.finish() == []


def test_ids_of_mistral_are_nine_letters_and_digits() -> None:
    (call,) = parse(PARSERS["mistral"](), "[TOOL_CALLS]add[ARGS]{}").calls
    assert len(call.id) == 9 and call.id.isalnum() and call.id.isascii()


UNITS = ["<tool_call>{", '<tool_call>{"a":"', "[TOOL_CALLS][", "<|python_tag|>{", "add\n{", "\n", "<think>", '\\"']
UNITS += ["```python", "[TOOL_CALLS]add"]


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("unit", UNITS)
def test_long_answers_take_bounded_memory(name: str, unit: str) -> None:
    """A megabyte of half-begun calls in small pieces; what is held back stays under the bound for a call."""
    whole = unit * (MAX_CALL * 5 // 4 // len(unit))
    parser, shown = PARSERS[name](), 0
    for start in range(0, len(whole), 1000):
        for delta in parser.push(whole[start : start + 1000]):
            shown += len(delta.text) if not isinstance(delta, ToolCallDelta) else 0
        assert start + 1000 - shown <= MAX_CALL + 20_000 or "think" in unit or unit == "\n"
    parser.finish()


@pytest.mark.parametrize("at", [1, 4000, 4096, 4098, 5000, 5001])
def test_long_blanks_before_a_call(at: int) -> None:
    """A run of blanks that is too long to be held back is text as a whole, wherever it is cut."""
    whole = "a" + " " * 5000 + '<tool_call>{"name": "add"}</tool_call>'
    assert content(cut(PARSERS["hermes"](), [whole[:at], whole[at:]])) == ("a" + " " * 5000, "", [("add", "{}")])


def test_a_call_beyond_the_bound_is_text() -> None:
    whole = '<tool_call>{"name": "add", "arguments": {"a": "' + "x" * MAX_CALL + '"}}</tool_call>'
    for size in (len(whole), 100_000):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        assert content(cut(PARSERS["hermes"](), pieces)) == (whole, "", [])


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-10**20, 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=9,
))  # fmt: skip
def test_python_calls(value: object) -> None:
    """What Python writes for a literal is read back."""
    for code in (f"tool_call(a={value!r}, b=1)", f"f(\n a = {value!r},b=1,)"):
        assert read_python_call(code) == {"a": value, "b": 1}


NO_CALLS = ["", "f", "f(", "f(1)", "f(a)", "f(a=b)", "f(a=1+1)", "f(a=f())", "f(a='x' 'y')", "f(a=1) or 1", "f(a=1_0)"]
NO_CALLS += ["f(a={1: 2})", "f(a=**b)", "f(a=lambda: 1)", "f(a=1", "f(a='", "f(,)", "f(a=)", "(a=1)", "f(a=1, a=2)"]
NO_CALLS += [f"f(a={'[' * 99}{']' * 99})", f"f(a={'-' * 99}1)", f"f(a={'1' * 500})"]


@pytest.mark.parametrize("code", NO_CALLS)
def test_python_calls_that_are_none(code: str) -> None:
    assert read_python_call(code) is None
