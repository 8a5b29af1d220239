"""Compiling: every kind of grammar, masks that lead to valid texts, deadlines, and what is kept."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashinfer_lite.errors import CapacityError, RequestError
from dashinfer_lite.grammar import compiler as compiling
from dashinfer_lite.grammar.compiler import Grammar, GrammarCompiler
from dashinfer_lite.grammar.vocabulary import vocabulary
from dashinfer_lite.guided import Guided
from dashinfer_lite.text import IncrementalDetokenizer, Tokenizer, load_tokenizer

from .conftest import GOLDEN

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain", None]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


def walk(grammars: GrammarCompiler, tokenizer: Tokenizer, guided: Guided, seed: int, most: int = 300) -> str | None:
    """A text of tokens drawn among those that the masks allow; None where it did not end."""
    matcher, vocab_size = grammars.matcher(guided), grammars._vocab_size
    mask = np.zeros(vocab_size // 32 + 1, np.uint32)
    rng = np.random.default_rng(seed)
    data, text = b"", IncrementalDetokenizer(tokenizer, tokenizer.encode("a"))
    shown = ""
    for _ in range(most):
        matcher.fill_mask(mask)
        allowed = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0]
        allowed = allowed[allowed < vocab_size]
        assert not set(allowed.tolist()) & {*tokenizer.special_ids, *tokenizer.eos_token_ids}
        if matcher.is_accepting and (not len(allowed) or rng.random() < 0.2):
            break
        token = int(rng.choice(allowed))
        data += tokenizer.token_bytes(token) or b""
        shown += text.push((token,))
        matcher.accept(token)
        if matcher.is_complete:
            break
    else:
        return None
    assert shown + text.flush() == data.decode()  # what readers see
    return data.decode()


@pytest.mark.parametrize("seed", range(8))
def test_walks_end_in_valid_texts(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    regex = r"(\d{3}-)+[a-fé]{2,4}|x"
    text = walk(compiler, tokenizer, Guided(regex=regex), seed)
    assert text is not None and re.fullmatch(regex, text)
    choice = ["yes", "no", "no, never", 'été\n\x00"\\/']
    assert walk(compiler, tokenizer, Guided(choice=choice), seed) in choice
    text = walk(compiler, tokenizer, Guided(grammar='start: "<" item+ ">"\nitem: /[a-z]/ | start'), seed)
    assert text is None or (re.fullmatch(r"(<|[a-z]|>)+", text) and text.count("<") == text.count(">"))
    person = json.loads(walk(compiler, tokenizer, Guided(json_schema=PERSON), seed) or "0")
    assert list(person) == ["name", "age", "likes"] and len(person["name"]) <= 8 and 0 <= person["age"] <= 150
    assert set(person["likes"]) <= {"tea", "rain", None} and len(person["likes"]) <= 2
    text = walk(compiler, tokenizer, Guided(json_object=True), seed)
    assert text is None or isinstance(json.loads(text), dict)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), min_size=1, unique=True))
def test_any_choices(compiler: GrammarCompiler, tokenizer: Tokenizer, choice: list[str]) -> None:
    assert walk(compiler, tokenizer, Guided(choice=choice), len(choice[0])) in choice


KINDS = ["bytelevel_qwen", "bytelevel_llama3", "bytelevel_glm4", "spm_llama", "spm_gemma"]
KINDS += ["tiktoken_qwen", "tiktoken_glm4", "spm_chatglm1", "spm_chatglm3", "spm_baichuan2"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_tokenizers(kind: str) -> None:
    """Byte-level, byte fallback in tokenizer.json; a model's vocabulary is larger or smaller than the tokenizer's."""
    own = load_tokenizer(GOLDEN / kind)
    for vocab_size in (own.vocab_size, own.vocab_size + 70, own.vocab_size - 3):
        grammars = GrammarCompiler(own, vocab_size, deadline_s=200)
        for seed in range(3):
            regex = "[a-zé漢 ]{3,9}🙂?"
            text = walk(grammars, own, Guided(regex=regex), seed)
            assert text is not None and re.fullmatch(regex, text)
            text = walk(grammars, own, Guided(json_schema={"type": "array", "items": {"type": "string"}}), seed)
            assert text is None or all(isinstance(item, str) for item in json.loads(text))


def test_sentencepiece_without_a_tokenizer_json(tmp_path: Any) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((GOLDEN / "spm_llama" / name).read_bytes())
    own = load_tokenizer(tmp_path)
    assert own.kind == "sentencepiece"
    grammars = GrammarCompiler(own, own.vocab_size, deadline_s=200)
    for seed in range(3):
        text = walk(grammars, own, Guided(regex="[a-zé漢 ]{3,9}🙂?"), seed)
        assert text is not None and re.fullmatch("[a-zé漢 ]{3,9}🙂?", text)


@pytest.mark.parametrize(
    ("guided", "reason"),
    [
        (Guided(regex="(a"), "^the regex cannot be used: .*unclosed group$"),
        (Guided(regex="a(?=b)"), "look-around"),
        (Guided(regex=r"(a)\1"), "backreferences"),
        (Guided(grammar="start: x"), 'unknown name: "x"$'),
        (Guided(grammar='other: "x"'), "no start rule"),
        (Guided(grammar="start: <|nobody|>"), 'unknown special token: "<|nobody|>"$'.replace("|", r"\|")),
        (Guided(grammar="start: (a|b\n"), "Expected token"),
        (Guided(grammar="\x00"), "lexer error"),
    ],
)
def test_broken_grammars(compiler: GrammarCompiler, guided: Guided, reason: str) -> None:
    for _ in range(2):  # the second time the error is a kept one
        with pytest.raises(RequestError, match=reason):
            compiler.compile(guided)


def test_a_refused_token(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.matcher(Guided(regex="a"))
    with pytest.raises(RequestError, match="the grammar cannot be used"):
        matcher.accept(tokenizer.encode("b", add_special_tokens=False)[0])


def test_matchers_are_independent(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    guided = Guided(choice=["ab", "cd"])
    first, second = compiler.matcher(guided), compiler.matcher(guided)
    first.accept(tokenizer.encode("a", add_special_tokens=False)[0])
    second.accept(tokenizer.encode("c", add_special_tokens=False)[0])
    assert not first.is_accepting and not second.is_complete
    assert walk(compiler, tokenizer, guided, 0) in ("ab", "cd")


CHAIN: dict[str, Any] = {"500": {}, **{str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(500)}}
HOSTILE = {
    "optional letters": Guided(regex="a?" * 2048),
    "chain of rules": Guided(grammar="\n".join([*(f"r{i}: r{i + 1}" for i in range(998)), 'r998: "a"', "start: r0"])),
    "chain of schemas": Guided(json_schema={"$ref": "#/$defs/0", "$defs": CHAIN}),
    "brackets": Guided(grammar="start: " + "(" * 2000 + '"a"' + ")" * 2000),
    "groups": Guided(regex="(" * 2000 + "a" + ")" * 2000),
    "schema that is itself": Guided(json_schema={"$ref": "#"}),
    "constant": Guided(json_schema={"const": json.loads("[" * 900 + "]" * 900)}),
    "multiples": Guided(json_schema={"type": "integer", "multipleOf": 123457, "minimum": 5, "maximum": 10**15}),
    "nested repeats": Guided(regex="(a{1000}){1000}"),
    "ambiguous repeats": Guided(regex="((a?){100}){100}a{100}"),
    "classes": Guided(regex=r"(\p{L}{1,100}\w{1,100}){1,50}"),
    "lookback": Guided(regex=r"(.|\n)*(a.{12}|b.{13}c)(.|\n)*a.{14}"),
    "itself": Guided(grammar='start: start start | "a"'),
    "ambiguous": Guided(grammar='start: a a a a a\na: a a | "a" | "b" | ""'),
    "empty loops": Guided(grammar="start: a\na: b a |\nb:"),
    "many properties": Guided(json_schema={"properties": {f"p{i}": {"type": "string"} for i in range(512)}}),
    "many values": Guided(json_schema={"enum": list(range(5000))}),
    "long": Guided(json_schema={"type": "array", "items": {"type": "string"}, "minItems": 100_000}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_have_an_end(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    """They work, or end in one clear error; nothing crashes."""
    try:
        walk(compiler, tokenizer, HOSTILE[name], 0, most=20)
    except RequestError as error:
        assert re.search("cannot be used|no token of this model|could not be compiled", str(error))


@pytest.mark.parametrize(
    ("guided", "reason"),
    [
        (Guided(regex="a" * 4097), "the regex has 4097 characters; at most 4096"),
        (Guided(json_schema={"items": {"pattern": "a" * 4097}}), "a pattern at #/items has more than 4096 characters"),
        (Guided(json_schema={"patternProperties": {"a" * 4097: {}}}), "a pattern at # has more than 4096 characters"),
        (Guided(grammar="start: A\nA: /" + "a" * 4097 + "/"), "a line of the grammar has more than 4096 characters"),
        (Guided(grammar='start: "a"\n' + "\n" * 1000), "the grammar has 1001 lines"),
        (Guided(grammar=f"start: %json {json.dumps({'items': {'pattern': 'a' * 4097}})}"), "a pattern at #/items"),
    ],
)
def test_bounds(compiler: GrammarCompiler, guided: Guided, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        compiler.compile(guided)
    long = {"description": "x" * 9000, "type": "null"}
    compiler.compile(Guided(grammar=f"start: %json {json.dumps(long)}"))


class Gate:
    """Stands for compilations that take forever: those of regular expressions wait at it."""

    def __init__(self, compile_really: Callable[[Guided], Grammar]) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.compiled: list[Guided] = []
        self._really = compile_really

    def __call__(self, guided: Guided) -> Grammar:
        self.compiled.append(guided)
        if guided.regex is not None:
            self.entered.release()
            assert self.opened.wait(200)
        return self._really(guided)


@pytest.fixture
def gated(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A compiler with the shortest deadline, and the gate in it."""
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size, deadline_s=0.1)
    gate = Gate(grammars._compile)
    monkeypatch.setattr(grammars, "_compile", gate)
    yield grammars, gate
    gate.opened.set()


def test_the_deadline(gated: tuple[GrammarCompiler, Gate]) -> None:
    """A late compilation is refused, now and later; two at once leave no room; then all is well again."""
    grammars, gate = gated
    for regex in ("a+", "b+"):
        with pytest.raises(RequestError, match=r"the regex could not be compiled within 0\.1 seconds"):
            grammars.compile(Guided(regex=regex))
    with pytest.raises(CapacityError, match="other grammars are being compiled"):
        grammars.compile(Guided(choice=["a"]))
    with pytest.raises(RequestError, match="could not be compiled within"):
        grammars.compile(Guided(regex="a+"))
    assert len(gate.compiled) == 2
    gate.opened.set()
    grammars._ticks = 2000
    grammars.compile(Guided(choice=["a"]))
    with pytest.raises(RequestError, match="could not be compiled within"):  # what was refused stays so
        grammars.compile(Guided(regex="a+"))


def test_one_compilation_for_all_who_ask(gated: tuple[GrammarCompiler, Gate]) -> None:
    grammars, gate = gated
    grammars._ticks = 2000
    made: list[Grammar] = []
    threads = [threading.Thread(target=lambda: made.append(grammars.compile(Guided(regex="a+")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert gate.entered.acquire(timeout=200)
    gate.opened.set()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(map(id, made))) == 1 and len(gate.compiled) == 1


def test_many_ask_at_once(tokenizer: Tokenizer) -> None:
    """More grammars than workers, from many threads: all are compiled, nobody is turned away."""
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size, deadline_s=200)
    failed: list[Exception] = []

    def ask(number: int) -> None:
        try:
            for i in range(4):
                grammars.compile(Guided(regex=f"{(number + i) % 20}+"))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(grammars._kept) == 20 and not grammars._jobs


def test_what_is_kept_is_bounded(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MAX_KEPT", 5)
    first = compiler.compile(Guided(choice=["first"]))
    for i in range(20):
        compiler.compile(Guided(choice=[f"{i}"]))
        assert compiler.compile(Guided(choice=["first"])) is first  # asked for again and again
        assert len(compiler._kept) <= 5
    monkeypatch.setattr(compiling, "MAX_KEPT_SOURCE", 10)
    compiler.compile(Guided(choice=["a" * 11]))
    assert not compiler._kept and compiler._kept_source == 0
    assert not compiler._jobs


def test_without_llguidance(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    with pytest.raises(RequestError, match=r"pip install 'dashinfer-lite\[guided\]'"):
        grammars.compile(Guided(regex="a"))


def test_tokenizers_whose_tokens_are_not_bytes(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "joins_bytes", False, raising=False)
    with pytest.raises(RequestError, match="not supported with this tokenizer"):
        vocabulary(tokenizer, 100)
