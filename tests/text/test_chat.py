"""Chat templates: reference renderings, malformed conversations, and templates that mean harm."""

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.text import ChatTemplate, sandbox

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizers"
CASES = json.loads((GOLDEN / "chat_templates" / "cases.json").read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: Any = USER, **kwargs: Any) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}, "folder").render(messages, **kwargs)


@pytest.mark.parametrize("family", CASES["templates"], ids=[t["template"] for t in CASES["templates"]])
def test_golden_renderings(family: dict[str, Any]) -> None:
    tokens = {"bos_token": family["bos_token"], "eos_token": family["eos_token"]}
    template = ChatTemplate({"default": family["source"]}, tokens, "folder")
    for case in family["cases"]:
        messages = CASES["messages"][case["messages"]]
        text = template.render(messages, add_generation_prompt=case["add_generation_prompt"], **case["kwargs"])
        assert text == case["rendered"]


@pytest.mark.parametrize("kind", ["bytelevel_qwen", "bytelevel_llama3", "bytelevel_glm4", "spm_llama", "spm_gemma"])
def test_folders_of_the_golden_set(kind: str) -> None:
    template = ChatTemplate.load(GOLDEN / kind)
    assert template.available and "Hello there" in template.render(CASES["messages"]["one_turn"])


def test_what_templates_of_the_wild_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(2024, 7, 26)

    monkeypatch.setattr(sandbox.datetime, "datetime", Clock)
    tools = [{"name": "f", "é": "<&'>"}]
    assert render("{{ tools | tojson }}", tools=tools) == '[{"name": "f", "é": "<&\'>"}]'
    assert render("{{ tools[0] | tojson(indent=2) }}", tools=tools) == '{\n  "name": "f",\n  "é": "<&\'>"\n}'
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    assert render("{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}") == "13"
    assert render("{% generation %}a{{ bos_token }}{% endgeneration %}") == "a<s>"
    assert render("{{ eos_token }}{{ enable_thinking is defined }}", enable_thinking=False) == "True"
    assert (
        render("{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}")
        == "10"
    )
    assert render("{{ messages[::-1][0].content.split('i')[0] | trim | upper }}") == "H"
    assert render("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') ~ m(1) }}") == "[a][1]"
    assert (
        render("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}") == "hi"
    )
    assert render("{{ '%s-%d' % ('a', 3) }}{{ '{}{x}'.format(1, x=2) }}{{ 'ab' * 2 }}") == "a-312abab"
    assert render("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}") == "a1True"
    assert render("{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}") == "12"
    assert (
        render("{{ messages[0].content | default('x') | length }}{{ {'b': 1, 'a': 2} | dictsort | first }}")
        == "2('a', 2)"
    )
    assert render("  {% if true %}\n  a\n  {% endif %}\n") == "  a\n"


def test_a_long_conversation_is_no_bomb() -> None:
    template = ChatTemplate.load(GOLDEN / "bytelevel_qwen")
    messages = [{"role": "user", "content": "word " * 20}] * 10_000
    assert template.render(messages).count("<|im_end|>") == 10_001
    assert len(template.render([{"role": "user", "content": "x" * 4_000_000}])) > 4_000_000


def test_a_prompt_beyond_the_limit() -> None:
    with pytest.raises(RequestError, match="4194304 characters"):
        render("{% for m in messages %}{{ m.content }}{% endfor %}", [{"role": "user", "content": "x" * 3_000_000}] * 2)
    with pytest.raises(RequestError, match="4194304 characters"):
        render("{{ messages[0].content }}", [{"role": "user", "content": "x" * 5_000_000}])


# ---- which template ------------------------------------------------------------------------------------------------


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.load(tmp_path)
    assert template.render(USER) == "plain" and template.render(USER, tools=[{"name": "f"}]) == "tools"
    assert template.render(USER, tools=[]) == "plain"


def test_files_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert ChatTemplate.load(tmp_path).render(USER) == "json"
    token = {"content": "<b>", "lstrip": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config", "bos_token": token}))
    assert ChatTemplate.load(tmp_path).render(USER) == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja{{ bos_token }}")
    assert ChatTemplate.load(tmp_path).render(USER) == "jinja<b>"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert ChatTemplate.load(tmp_path).render(USER, tools=[1]) == "more"


def test_no_template(tmp_path: Path) -> None:
    template = ChatTemplate.load(tmp_path)
    assert not template.available
    with pytest.raises(RequestError, match="no chat template"):
        template.render(USER)


def test_no_default_template() -> None:
    with pytest.raises(RequestError, match="a, b"):
        ChatTemplate({"a": "x", "b": "y"}, {}, "folder").render(USER)
    assert ChatTemplate({"only": "x"}, {}, "folder").render(USER) == "x"


@pytest.mark.parametrize(
    "value",
    [3, {}, [1], [{"name": "default"}], [{"name": 1, "template": "x"}], "x" * 300_000, "{% set a = b %}" * 2001],
    ids=range(7),
)
def test_broken_template_entries(tmp_path: Path, value: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ModelError, match="template"):
        ChatTemplate.load(tmp_path)


# ---- the conversation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "empty"),
        ("hi", "must be a list"),
        (None, "must be a list"),
        ({"role": "user"}, "must be a list"),
        (["hi"], r"messages\[0\]"),
        ([*USER, {"content": "x"}], r"messages\[1\]: role"),
        ([*USER, {"role": 3, "content": "x"}], r"messages\[1\]: role"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content"),
        ([{"role": "user", "content": {"text": "x"}}], r"messages\[0\]: content"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}], r"content\[1\]"),
    ],
)
def test_malformed_conversations(messages: Any, where: str) -> None:
    with pytest.raises(RequestError, match=where):
        render("{{ messages }}", messages)


def test_parts_are_joined_unless_the_template_takes_them() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render("{{ 'x' + messages[0]['content'] }}", parts) == "xa\nb"
    source = "{%- for m in messages %}{%- for part in m['content'] %}{{ part.text }}|{% endfor %}{% endfor %}"
    assert render(source, parts) == "a|b|"
    assert render("{{ messages[0].content is none }}", [{"role": "assistant", "content": None}]) == "True"


def test_the_conversation_is_left_alone() -> None:
    messages = [{"role": "user", "content": "x", "tool_calls": [1]}]
    for source in ("{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}", "{{ messages[0].tool_calls.pop() }}"):
        with pytest.raises(RequestError):
            render(source, messages)
    assert messages == [{"role": "user", "content": "x", "tool_calls": [1]}]


def test_the_template_refuses_in_its_own_words() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


# ---- templates that mean harm --------------------------------------------------------------------------------------

DOUBLING = "{% set ns = namespace(x=X) %}{% for i in range(200) %}{% set ns.x = OP %}{% endfor %}"
LONG = "{% set s = 'a' * 4000000 %}"
LOOP = "{% for a in range(99999) %}BODY{% endfor %}"
LOOPS = LOOP.replace("BODY", LOOP.replace("BODY", LOOP))
BOMBS = {
    "silent loops": LOOPS.replace("BODY", ""),
    "filtered loops": LOOPS.replace("range(99999) %}BODY", "range(99999) if false %}x"),
    "loud loops": LOOPS.replace("BODY", "x" * 1000),
    "captured text": "{% set t %}" + LOOPS.replace("BODY", "x" * 1000) + "{% endset %}",
    "macro text": "{% macro m() %}" + LOOPS.replace("BODY", "x" * 9999) + "{% endmacro %}{% set x = m() %}",
    "recursive macro": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "exponential macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% set l = [1, 2] %}{% for x in l recursive %}{{ loop(l) }}{% endfor %}",
    "long bodies": LOOPS.replace("BODY", "{% set x = [" + "messages.x," * 2000 + "] %}"),
    "long tests": LOOPS.replace("99999) %}BODY", "99999) if [" + "messages.x," * 2000 + "] is none %}"),
    "long macros": "{% macro m() %}{% set x = ["
    + "messages.x," * 2000
    + "] %}{% endmacro %}"
    + LOOPS.replace("BODY", "{{ m() }}"),
    "string times": "{{ 'a' * 10 ** 12 }}",
    "list times": "{{ [1] * 10 ** 12 }}",
    "times list": "{% set x = 10 ** 12 * [1] %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of power": "{{ (2 ** 4000) ** 4000 }}",
    "negative power": "{{ 7 ** -(10 ** 10) }}",
    "digits": "{{ ('9' * 4000000) | int }}" * 2 + "{{ 1 / 0 }}",
    "rounding": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1.0 }}",
    "percent name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "percent filter": "{{ '%1000000000d' | format(1) }}",
    "percent fields": "{{ ('%s' * 4000) % tuple }}{{ '%(a)s' * 9999 % {'a': 'x' * 999999} }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "format fields": "{{ ('{0}' * 10000).format('x' * 1000000) }}",
    "unknown center": "{{ 'a' | center(10 ** 10) }}",
    "method center": "{{ 'a'.center(10 ** 10) }}",
    "method zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "method expandtabs": "{{ '\\t'.expandtabs(10 ** 10) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "indent": "{{ 'a' | indent(10 ** 10, true) }}",
    "indent lines": "{{ ('a\\n' * 9999) | indent(99999) }}",
    "json indent": "{{ [[1]] | tojson(indent=10 ** 10) }}",
    "json separators": "{{ ([1] * 99999) | tojson(separators=('x' * 99999, '')) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "replace nothing": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "join": "{{ range(99999) | join('a' * 99999) }}",
    "method join": "{{ ('a' * 99999).join(['b'] * 99999) }}",
    "sum of lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "concat doubling": DOUBLING.replace("X", "'ab'").replace("OP", "ns.x ~ ns.x"),
    "plus doubling": DOUBLING.replace("X", "'ab'").replace("OP", "ns.x + ns.x"),
    "join doubling": DOUBLING.replace("X", "'ab'").replace("OP", "[ns.x, ns.x] | join"),
    "list doubling": DOUBLING.replace("X", "[1]").replace("OP", "ns.x + ns.x"),
    "escape growth": DOUBLING.replace("X", "'&'").replace("OP", "(ns.x | string).replace('&', '&&')"),
    "printed tree": DOUBLING.replace("X", "[1]").replace("OP", "[ns.x, ns.x]") + "{{ ns.x }}",
    "joined tree": DOUBLING.replace("X", "[1]").replace("OP", "[ns.x, ns.x]") + "{% set y = ns.x ~ 'a' %}",
    "json tree": DOUBLING.replace("X", "[1]").replace("OP", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "string tree": DOUBLING.replace("X", "[1]").replace("OP", "[ns.x, ns.x]") + "{% set y = ns.x | string %}",
    "hashed tree": DOUBLING.replace("X", "(1,)").replace("OP", "(ns.x, ns.x)") + "{% set y = {ns.x: 1} %}",
    "subscripted tree": DOUBLING.replace("X", "(1,)").replace("OP", "(ns.x, ns.x)") + "{% set y = {}[ns.x] %}",
    "looked up tree": DOUBLING.replace("X", "(1,)").replace("OP", "(ns.x, ns.x)") + "{% set y = {}.get(ns.x) %}",
    "compared trees": "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(200) %}"
    "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
    "tested trees": "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(200) %}"
    "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{% if a.x is eq(b.x) %}{% endif %}",
    "changed trees": "{% set a = namespace(x=[1]) %}{% for i in range(200) %}{% set a.x = [a.x, a.x] %}"
    "{% if loop.changed(a.x) %}{% endif %}{% endfor %}",
    "namespace cycle": "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
    "namespace tree": DOUBLING.replace("X", "1").replace("OP", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "slices": LONG + LOOP.replace("BODY", "{% set t = s[1:] %}"),
    "splits": LONG + LOOP.replace("BODY", "{% set t = s.split('a') %}"),
    "compares": LONG + LOOP.replace("BODY", "{% if s + 'a' == s + 'b' %}{% endif %}"),
    "searches": LONG + LOOP.replace("BODY", "{{ s.count('b') }}"),
    "strips": LONG + "{{ (s + 'b').strip('c' * 3000000 + 'a') }}",
    "trims": LONG + "{{ s | trim('c' * 3000000 + 'a') }}",
    "backward search": "{{ ('a' * 4000000).rfind('b' + 'a' * 1000000) }}",
    "lists": LOOP.replace("BODY", "{% set t = range(99999) | list %}"),
    "selections": LOOP.replace("BODY", "{% set t = range(99999) | select('eq', -1) | list %}"),
    "maps": LOOP.replace("BODY", "{% set t = range(99999) | map('string') %}"),
    "sorts": LOOP.replace("BODY", "{% set t = range(99999) | sort %}"),
    "star arguments": "{% macro m() %}{{ varargs[0] }}{% endmacro %}" + LOOP.replace("BODY", "{{ m(*range(99999)) }}"),
    "large range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "wide percent scan": "{{ ('%' + '0' * 4000000) % 1 }}",
    "percent parens scan": "{{ ('%(' * 2000000) % {} }}",
    "brace scan": "{{ ('{' * 4000000).format() }}",
}
THIEVES = {
    "format attribute": "{{ '{0.__class__}'.format(1) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "class": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "globals by filter": "{{ raise_exception | attr('__globals__') }}",
    "globals by item": "{{ raise_exception['__globals__'] }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list | first }}",
    "init": "{{ namespace.__init__.__globals__ }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "cycler": "{{ cycler.__init__ }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
    "host function": "{{ helper() }}",
    "format through map": "{{ ['{0.__class__}'] | map('format', 1) | list }}{{ '{0.__class__}'.format(1) }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_end_with_an_error(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_WORK", 100_000)  # the full budget would only take longer
    with pytest.raises(RequestError, match="folder"):
        render(source)


@pytest.mark.parametrize("source", THIEVES.values(), ids=THIEVES.keys())
def test_nothing_leads_out_of_the_sandbox(source: str) -> None:
    with contextlib.suppress(RequestError):
        assert render(source, helper=lambda: "called") == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{",
        "{% for %}",
        "{% endif %}",
        "{{ 1 | nonesuch }}",
        "{{ 1 is nonesuch }}",
        "{{ nonesuch() }}",
        "{{ messages[7].role }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ ''.join() }}",
        "{{ 'a' | replace }}",
        "{{" + "(" * 90_000 + "}}",
        "{{ " + "-" * 90_000 + "1 }}",
        "{{ 1" + "+1" * 20_000 + " }}",
        "{% if 1 %}" * 900 + "{% endif %}" * 900,
        "{% for i in [1] %}" * 99 + "{% endfor %}" * 99,
        "{% if 0 %}" + "{% elif 0 %}" * 1900 + "{% endif %}{{ 1 / 0 }}",
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    ],
    ids=range(18),
)
def test_broken_templates(source: str) -> None:
    with pytest.raises(RequestError, match="template"):
        render(source)


def test_arguments_of_past_calls_are_objects() -> None:
    """Clients send them as JSON text, which a template would quote once more; what is no object stays as it is."""
    source = "{% for c in messages[1].tool_calls %}{{ (c.function or c).arguments | tojson }} {% endfor %}"
    calls: list[Any] = [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"name": "f", "arguments": {"a": 2}},
        {"name": "f", "arguments": "not JSON"},
        {"name": "f", "arguments": "[" * 100_000},
    ]
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "x"}], "tool_calls": calls[:2]}
    assert render(source, [*USER, answer]).startswith('{"a": 1} {"a": 2} "not JSON" "[[[')
    assert render(source, [*USER, parts]) == '{"a": 1} {"a": 2} '
    assert calls[0]["function"]["arguments"] == '{"a": 1}'
    assert render("{{ messages[0].tool_calls }}", [{**USER[0], "tool_calls": "no list"}]) == "no list"
    assert render("{{ messages[0].tool_calls }}", [{**USER[0], "tool_calls": [5]}]) == "[5]"


GLM4 = (
    "{% for item in messages %}{% if item['tools'] is defined %}<|system|>\nTOOLS{% for tool in item['tools'] %} "
    "{{ tool.function.name }}{% endfor %}{% endif %}{% if item['content'] %}<|{{ item['role'] }}|>"
    "{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
)
LOOKED_UP: list[dict[str, Any]] = [
    *USER,
    {"role": "assistant", "content": "I look.", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "é"}'}}]},
    {"role": "tool", "content": "5"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_templates_that_find_tools_in_a_message() -> None:
    past = '<|user|>\nhi<|assistant|>\nI look.<|assistant|>f\n{"a": "é"}<|observation|>\n5'
    assert render(GLM4, LOOKED_UP) == past
    assert render(GLM4, LOOKED_UP, tools=[TOOL]) == "<|system|>\nTOOLS f" + past
