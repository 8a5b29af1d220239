"""Rank files of tiktoken: merging against the plain definition, and every kind of broken file."""

import base64
import json
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.text import load_tokenizer
from dashinfer_lite.text.rank_bpe import CACHED_LENGTH, RankBPE

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizers"
QWEN = (GOLDEN / "tiktoken_qwen" / "qwen.tiktoken").read_bytes()

relaxed = settings(deadline=None, print_blob=True, max_examples=300)


def write(folder: Path, tokens: list[bytes], name: str = "qwen.tiktoken") -> Path:
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / name).write_bytes(b"".join(lines))
    return folder


def single_bytes() -> list[bytes]:
    return [bytes([byte]) for byte in range(256)]


# ---- merging -------------------------------------------------------------------------------------------------------


def plain_merge(ranks: dict[bytes, int], word: bytes) -> list[int]:
    """The definition: join the pair of the lowest rank, the leftmost of equal ones, until no pair is a token."""
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


longer = st.binary(min_size=2, max_size=6).map(lambda data: bytes(97 + byte % 3 for byte in data))


@relaxed
@given(
    tokens=st.lists(longer, unique=True, max_size=24),
    word=st.lists(st.sampled_from(b"abc"), max_size=CACHED_LENGTH + 20).map(bytes),
)
def test_merging_as_defined(tokens: list[bytes], word: bytes) -> None:
    ranks = {token: rank for rank, token in enumerate([*single_bytes(), *tokens])}
    expected = [ranks[word]] if word in ranks else plain_merge(ranks, word)
    assert list(RankBPE(ranks).encode(word)) == expected


def test_a_token_may_come_about_in_several_ways() -> None:
    ranks = {token: rank for rank, token in enumerate([*single_bytes(), b"bc", b"ab", b"abc"])}
    assert RankBPE(ranks).encode(b"abcab") == (ranks[b"abc"], ranks[b"ab"])
    assert RankBPE(ranks | {b"zz": 300, b"xyzzy": 301}).encode(b"xyzzy") == (301,)  # though no pair leads to it


def test_long_words_take_little_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = 0
    bpe = RankBPE({token: rank for rank, token in enumerate([*single_bytes(), b"ab", b"abab", b"ba"])})
    key = bpe._key

    def counting(word: bytes, start: int, end: int) -> int:
        nonlocal looked_up
        looked_up += 1
        return key(word, start, end)

    monkeypatch.setattr(bpe, "_key", counting)
    assert len(bpe.encode(b"ab" * 50_000)) == 25_000
    assert looked_up < 10 * 100_000


# ---- the families' rules -------------------------------------------------------------------------------------------


def test_qwen_normalizes_before_it_looks_for_special_tokens() -> None:
    tokenizer = load_tokenizer(GOLDEN / "tiktoken_qwen")
    end = tokenizer.token_to_id("<|im_end|>")
    assert end in tokenizer.encode("<|im_end|>") and end not in tokenizer.encode("<|im_end|>\u0338")
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\xe9")
    assert end not in tokenizer.encode_ordinary("<|im_end|>")
    glm = load_tokenizer(GOLDEN / "tiktoken_glm4")
    assert glm.encode("e\u0301") != glm.encode("\xe9")


def test_ids_and_names() -> None:
    tokenizer = load_tokenizer(GOLDEN / "tiktoken_qwen")
    special = json.loads((GOLDEN / "tiktoken_qwen" / "cases.json").read_text(encoding="utf-8"))["special_tokens"]
    for name, token_id in special.items():
        assert tokenizer.token_to_id(name) == token_id and tokenizer.id_to_token(token_id) == name
    assert tokenizer.special_ids == frozenset(range(420, 628))
    assert tokenizer.token_to_id("!") == 0 and tokenizer.id_to_token(0) == "!"
    assert tokenizer.token_to_id("nonesuch") is None and tokenizer.id_to_token(628) is None
    assert tokenizer.bos_token_id is None and tokenizer.decode([64, 421, 64]) == "aa"


def test_what_ends_an_answer(tmp_path: Path) -> None:
    write(tmp_path, single_bytes())
    assert load_tokenizer(tmp_path).eos_token_ids == (258, 257, 256)
    (tmp_path / "config.json").write_text('{"eos_token_id": 256}')
    assert load_tokenizer(tmp_path).eos_token_ids == (256, 258, 257)
    (tmp_path / "generation_config.json").write_text('{"chat_format": "raw"}')
    assert load_tokenizer(tmp_path).eos_token_ids == (256,)


@pytest.mark.parametrize(
    ("name", "words"), [("qwen.tiktoken", ["1", "2", "3", "4", "5"]), ("tokenizer.model", ["123", "45"])]
)
def test_how_digits_are_grouped(tmp_path: Path, name: str, words: list[str]) -> None:
    tokenizer = load_tokenizer(write(tmp_path, [*single_bytes(), b"12", b"45", b"123", b"1234", b"34"], name))
    ids = tokenizer.encode("12345", add_special_tokens=False)
    assert [tokenizer.id_to_token(i) for i in ids] == words


def test_words_as_tiktoken_cuts_them(tmp_path: Path) -> None:
    """A token for each whole word that the pattern finds, and for longer ones that it must not find."""
    words = ["it", "'S", " don", "'t", "\t\t", "\tgo", " ", "  ", "...\r\n", "\n \n", "x", "_a", " _", "é", "\u3000é"]
    longer = ["it'S", " don't", "_a_", "\n \nx", "   "]
    tokens = [*single_bytes(), *(w.encode() for w in [*words, *longer] if len(w.encode()) > 1)]
    tokenizer = load_tokenizer(write(tmp_path, tokens))
    for text, cut in [
        ("it'S don't", ["it", "'S", " don", "'t"]),
        ("\t\t\tgo", ["\t\t", "\tgo"]),
        ("   x", ["  ", " ", "x"]),
        ("...\r\nx", ["...\r\n", "x"]),
        ("\n \nx", ["\n \n", "x"]),
        ("_a _", ["_a", " _"]),
        ("it\u3000é", ["it", "\u3000é"]),
    ]:
        assert [tokenizer.id_to_token(i) for i in tokenizer.encode(text)] == cut


def test_glm4_begins_with_its_frame() -> None:
    tokenizer = load_tokenizer(GOLDEN / "tiktoken_glm4")
    assert tokenizer.encode("a") == [422, 424, 64] and tokenizer.eos_token_ids == (420, 427, 429)


def test_added_tokens_decoder_decides_over_the_usual_ids(tmp_path: Path) -> None:
    write(tmp_path, single_bytes(), "tokenizer.model")
    names = ["[gMASK]", "<sop>", "<|endoftext|>", "<|user|>", "<|other|>"]
    decoder = {str(256 + i): {"content": name, "special": name != "<|other|>"} for i, name in enumerate(names)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a<|other|><|user|>") == [256, 257, 97, 260, 259]
    # <|observation|>, which the file does not name, keeps its usual place after the ranks.
    assert tokenizer.decode([97, 259, 260]) == "a<|other|>" and tokenizer.eos_token_ids == (258, 259, 265)
    decoder["7"] = {"content": "<|low|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(ModelError, match="id 7 is a rank's"):
        load_tokenizer(tmp_path)
    decoder = {str(256 + i): {"content": f"<{i}>"} for i in range(14)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(ModelError, match=r"lacks \[gMASK\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "QWenTokenizer"}}, "tiktoken (Qwen)"),
        ({"config.json": {"model_type": "qwen"}}, "tiktoken (Qwen)"),
        ({"config.json": {"architectures": ["ChatGLMModel"]}}, "tiktoken (GLM-4)"),
        ({"tokenizer_config.json": {"tokenizer_class": None}}, "tiktoken (GLM-4)"),
        ({}, "tiktoken (GLM-4)"),
    ],
)
def test_whose_rules_a_rank_file_follows(tmp_path: Path, config: dict[str, object], kind: str) -> None:
    write(tmp_path, single_bytes(), "tokenizer.model")
    for name, value in config.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert load_tokenizer(tmp_path).kind == kind


def test_a_rank_file_of_another_family(tmp_path: Path) -> None:
    write(tmp_path, single_bytes(), "tokenizer.model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no known rules for one of 'llama'"):
        load_tokenizer(tmp_path)
    shutil.copyfile(GOLDEN / "spm_llama" / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    with pytest.raises(ModelError, match="this is none"):
        load_tokenizer(tmp_path)


def test_a_text_that_the_splitter_gives_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What a panic in Rust arrives as."""

    class GivingUp:
        def pre_tokenize_str(self, text: str) -> None:
            raise Panic("retry-limit-in-match over")

    tokenizer = load_tokenizer(GOLDEN / "tiktoken_qwen")
    monkeypatch.setattr(tokenizer, "_words", GivingUp())
    with pytest.raises(RequestError, match="cannot encode this text: retry-limit"):
        tokenizer.encode("a")


# ---- broken files --------------------------------------------------------------------------------------------------


def line_of(number: int, text: bytes) -> Callable[[list[bytes]], bytes]:
    return lambda lines: b"\n".join([*lines[: number - 1], text, *lines[number:]])


BROKEN = {
    "empty": (lambda lines: b"", "the vocabulary is empty"),
    "blank": (lambda lines: b"\n \n\n", "the vocabulary is empty"),
    "no rank": (line_of(7, b"Jw=="), 'line 7: expected "base64 rank"'),
    "three fields": (line_of(7, b"Jw== 6 6"), 'line 7: expected "base64 rank"'),
    "blank line": (line_of(7, b""), 'line 7: expected "base64 rank"'),
    "no base64": (line_of(7, b"J?== 6"), "line 7: .* is not base64"),
    "padding": (line_of(7, b"Jw= 6"), "line 7: .* is not base64"),
    "padding alone": (line_of(7, b"== 6"), "line 7: .* is not base64"),
    "a word": (line_of(7, b"Jw== six"), "line 7: b'six' is not a rank"),
    "negative": (line_of(7, b"Jw== -6"), "line 7: b'-6' is not a rank"),
    "endless digits": (line_of(7, b"Jw== " + b"6" * 5000), "line 7: .* is not a rank"),
    "same token": (line_of(7, b"Jg== 6"), "line 7: .* a second time, after line 6"),
    "same rank": (line_of(7, b"Jw== 5"), "line 7: rank 5 is taken already, by line 6"),
    "a gap": (line_of(7, b"Jw== 777"), "line 7 has rank 777, but rank 6 is missing"),
    "huge line": (line_of(7, b"A" * 100_000), "line 7: longer than 8192 bytes"),
    "one line": (lambda lines: b"A" * (8 << 20), "line 1: longer than 8192 bytes"),
    "cut": (lambda lines: b"\n".join(lines[:100]), "after line 100: the byte 0x.. is missing"),
    "cut inside": (lambda lines: b"\n".join(lines)[:1234], r"line \d+: expected|line \d+: .* is not base64|missing"),
    "other text": (lambda lines: b"version https://git-lfs.github.com/spec/v1", 'line 1: .* is not base64'),
    "zeros": (lambda lines: bytes(5000), 'line 1: expected "base64 rank"'),
    "high bytes": (lambda lines: b"\xff\xfe 0\n", "line 1: .* is not base64"),
    "digits of elsewhere": (line_of(7, "Jw== ٦".encode()), "line 7: .* is not a rank"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rank_file(tmp_path: Path, change: Callable[[list[bytes]], bytes], message: str) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(change(QWEN.splitlines()))
    with pytest.raises(ModelError, match=rf"qwen\.tiktoken: (?:{message})"):
        load_tokenizer(tmp_path)


def test_a_rank_file_that_ends_too_early_for_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(QWEN.splitlines()[:300]))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 628}')
    with pytest.raises(ModelError, match=r"qwen\.tiktoken: holds 508 tokens .* eos_token_id 628"):
        load_tokenizer(tmp_path)


def test_a_rank_file_of_absurd_size(tmp_path: Path) -> None:
    with (tmp_path / "qwen.tiktoken").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="at most"):
        load_tokenizer(tmp_path)


def test_line_ends_and_order_do_not_matter(tmp_path: Path) -> None:
    lines = QWEN.splitlines()
    random.Random(3).shuffle(lines)
    (tmp_path / "qwen.tiktoken").write_bytes(b"\r\n".join(lines) + b"\r\n\n")
    expected = load_tokenizer(GOLDEN / "tiktoken_qwen")
    assert load_tokenizer(tmp_path).encode("Hello 今天 123") == expected.encode("Hello 今天 123")
