"""Streaming: pieces that join to the decoded whole, whatever the tokens are."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashinfer_lite.errors import RequestError
from dashinfer_lite.text import IncrementalDetokenizer, StopStringMatcher, Tokenizer, load_tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizers"
JSON_KINDS = ["bytelevel_qwen", "bytelevel_llama3", "bytelevel_glm4", "spm_llama", "spm_gemma"]
FAMILY_KINDS = ["tiktoken_qwen", "tiktoken_glm4", "spm_chatglm1", "spm_chatglm3", "spm_baichuan2"]
KINDS = [*JSON_KINDS, *FAMILY_KINDS, "sentencepiece"]

NORMALIZERS = {  # a second normalizer_spec (field 3) in a ModelProto, which overrides the first
    "as it is": b"",
    "no dummy prefix": b"\x1a\x02\x18\x00",
    "no extra spaces": b"\x1a\x02\x20\x01",
    "neither": b"\x1a\x04\x18\x00\x20\x01",
}

ALL = bool(os.environ.get("DASHINFER_TEST_ALL"))
relaxed = settings(deadline=None, print_blob=True, max_examples=400 if ALL else 30)  # of each kind


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind != "sentencepiece":
        return load_tokenizer(GOLDEN / kind)
    with TemporaryDirectory() as folder:
        shutil.copyfile(GOLDEN / "spm_llama" / "tokenizer.model", Path(folder) / "tokenizer.model")
        return load_tokenizer(folder)


@cache
def bytes_first(kind: str) -> list[int]:
    """The ids of a vocabulary, those that are no valid UTF-8 by themselves many times over."""
    tokenizer = tokenizer_of(kind)
    ids = list(range(tokenizer.vocab_size + 2))
    broken = [i for i in ids if (tokenizer.token_bytes(i) or b"").decode("utf-8", "ignore").encode() == b""]
    return ids + 3 * broken


def ids_of(kind: str, **limits: int) -> st.SearchStrategy[list[int]]:
    whole_characters = st.sampled_from(["你", "é", "😀", " a", "\ufffd", "▁"]).map(
        lambda text: tokenizer_of(kind).encode(text, add_special_tokens=False)
    )
    one = st.sampled_from(bytes_first(kind)).map(lambda i: [i])
    return st.lists(one | whole_characters, **limits).map(lambda parts: [i for part in parts for i in part])


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.push([i]) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", JSON_KINDS + FAMILY_KINDS)
def test_golden_streaming(kind: str) -> None:
    for case in json.loads((GOLDEN / kind / "cases.json").read_text(encoding="utf-8"))["streaming"]:
        detokenizer, text = IncrementalDetokenizer(tokenizer_of(kind), (), False), ""
        for token_id, allowed in zip(case["ids"], case["streamed_so_far"], strict=True):
            text += detokenizer.push([token_id])
            if kind not in ("spm_llama", "spm_gemma"):
                assert text == allowed
            else:  # characters of an open run of bytes wait, as a bad byte would still change them
                assert allowed.startswith(text)
        assert text + detokenizer.flush() == case["final"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
@relaxed
@given(data=st.data())
def test_pieces_join_to_the_whole(kind: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(ids_of(kind, max_size=24))
    assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(data=st.data())
def test_what_was_sent_stays_true(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids, later = data.draw(ids_of(kind, max_size=12)), data.draw(ids_of(kind, max_size=6))
    sent = "".join(streamed(tokenizer, ids, True)[:-1])
    assert tokenizer.decode(ids + later).startswith(sent)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(text=st.text(alphabet="a é你😀\n한", max_size=12), cuts=st.integers(1, 3))
def test_no_piece_ends_in_half_a_character(kind: str, text: str, cuts: int) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push(ids[i : i + cuts]) for i in range(0, len(ids), cuts)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@pytest.mark.parametrize("changes", NORMALIZERS.values(), ids=NORMALIZERS.keys())
def test_sentencepiece_against_the_library(tmp_path: Path, changes: bytes) -> None:
    import sentencepiece

    model = (GOLDEN / "spm_llama" / "tokenizer.model").read_bytes() + changes
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = load_tokenizer(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.encode("  a  b ", add_special_tokens=False) == reference.encode("  a  b ")

    @relaxed
    @given(ids=ids_of("sentencepiece", max_size=16), spaces=st.integers(0, 3))
    def check(ids: list[int], spaces: int) -> None:
        known = [reference.piece_to_id("▁")] * spaces + [i for i in ids if i < reference.vocab_size()]
        assert tokenizer.decode(known) == reference.decode(known)

    check()


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(data=st.data())
def test_text_after_a_prompt(kind: str, data: st.DataObject) -> None:
    """A prompt that ends with a whole text piece: the answer's pieces are what it adds, leading space included."""
    tokenizer = tokenizer_of(kind)
    prompt = data.draw(ids_of(kind, max_size=12)) + tokenizer.encode("ab", add_special_tokens=False)
    ids = data.draw(ids_of(kind, max_size=12))
    detokenizer = IncrementalDetokenizer(tokenizer, prompt)
    text = detokenizer.push(ids) + detokenizer.flush()
    assert tokenizer.decode(prompt) + text == tokenizer.decode(prompt + ids)


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_cut_inside_a_character(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("a谢🇫", add_special_tokens=False)
    for cut in range(1, len(ids)):
        known = b"".join(tokenizer.token_bytes(i) or b"" for i in ids[:cut])
        said = known.decode("utf-8", "ignore").lstrip(" ")  # the whole characters of the prompt
        detokenizer = IncrementalDetokenizer(tokenizer, ids[:cut])
        text = detokenizer.push(ids[cut:]) + detokenizer.flush()
        assert said + text == "a谢🇫"


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_keeps_its_leading_space(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt = tokenizer.encode("Hello", add_special_tokens=False)
    answer = tokenizer.encode("Hello world", add_special_tokens=False)[len(prompt) :]
    assert IncrementalDetokenizer(tokenizer, prompt).push(answer) == " world"


def test_other_decoders_stream_too(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "hello": 1, "world": 2}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    tokenizer = load_tokenizer(tmp_path)
    ids = [1, 2, 2, 1, 0, 2] * 10
    assert "".join(streamed(tokenizer, ids, True)) == tokenizer.decode(ids)
    after = IncrementalDetokenizer(tokenizer, ids)
    assert after.push([1, 2]) == " hello world"


@pytest.mark.parametrize("kind", KINDS)
def test_work_per_token_does_not_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(kind)
    looked_up = 0
    surface = tokenizer._token_surface

    def counting(token_id: int) -> Any:
        nonlocal looked_up
        looked_up += 1
        return surface(token_id)

    monkeypatch.setattr(tokenizer, "_token_surface", counting)
    ids = tokenizer.encode("今天 abc 👍🏽 " * 500)
    detokenizer = IncrementalDetokenizer(tokenizer, ids)
    assert looked_up <= 20
    looked_up = 0
    detokenizer.push(ids)
    assert looked_up <= len(ids)


@pytest.mark.parametrize("bad", [-1, 1 << 31, "1", 1.0])
def test_what_is_no_token_id(bad: Any) -> None:
    with pytest.raises(RequestError, match="token id"):
        IncrementalDetokenizer(tokenizer_of("bytelevel_qwen")).push([bad])


# ---- stop strings --------------------------------------------------------------------------------------------------


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def matched(pieces: list[str], stops: list[str], include: bool) -> tuple[list[str], str | None]:
    matcher, sent, found = StopStringMatcher(stops, include), [], None
    for piece in pieces:
        text, found = matcher.push(piece)
        sent.append(text)
    return [*sent, matcher.flush()], found


words = st.text(alphabet="ab", min_size=1, max_size=5)


@settings(relaxed, max_examples=300)
@given(pieces=st.lists(st.text(alphabet="abc", max_size=6)), stops=st.lists(words, max_size=4), include=st.booleans())
def test_stop_strings_as_a_naive_search_finds_them(pieces: list[str], stops: list[str], include: bool) -> None:
    sent, found = matched(pieces, stops, include)
    assert ("".join(sent), found) == naive("".join(pieces), stops, include)


@settings(relaxed, max_examples=300)
@given(pieces=st.lists(st.text(alphabet="abc", max_size=6)), stops=st.lists(words, min_size=1, max_size=4))
def test_no_beginning_of_a_stop_string_is_sent(pieces: list[str], stops: list[str]) -> None:
    matcher, sent, text = StopStringMatcher(stops), "", ""
    for piece in pieces:
        safe, found = matcher.push(piece)
        sent, text = sent + safe, text + piece
        if found:
            break
        held = max((n for s in stops for n in range(len(s)) if n and text.endswith(s[:n])), default=0)
        assert sent == text[: len(text) - held]


def test_stop_string_across_pieces() -> None:
    matcher = StopStringMatcher(["\nUser:"])
    assert matcher.push("Hi.\n") == ("Hi.", None)
    assert matcher.push("Us") == ("", None)
    assert matcher.push("ed. \nUser") == ("\nUsed. ", None)
    assert matcher.push(": no") == ("", "\nUser:")
    assert matcher.push("more") == ("", "\nUser:") and matcher.flush() == ""


def test_long_stop_strings_take_linear_time() -> None:
    stop, steps = "a" * 50_000 + "b", 0

    class Counting(StopStringMatcher):
        def _step(self, state: int, char: str) -> int:
            nonlocal steps
            steps += 1
            return super()._step(state, char)

    matcher = Counting([stop])
    assert matcher.push("a" * 200_000)[1] is None
    assert matcher.push("b")[1] == stop and steps == 200_001


@pytest.mark.parametrize("stops", [[""], ["a", ""], "ab", [3], [b"a"], [None]])
def test_bad_stop_strings(stops: Any) -> None:
    with pytest.raises(RequestError, match="stop string"):
        StopStringMatcher(stops)
