"""SentencePiece with the rules of ChatGLM and Baichuan: which rules a folder gets, and what they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite.errors import ModelError
from dashinfer_lite.text import IncrementalDetokenizer, Tokenizer, load_tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizers"


def folder(tmp_path: Path, kind: str, **configs: dict[str, Any]) -> Path:
    """The model file of a golden kind, with configurations of one's own."""
    name = "ice_text.model" if kind == "spm_chatglm1" else "tokenizer.model"
    shutil.copyfile(GOLDEN / kind / name, tmp_path / name)
    for file in ("tokenizer_config", "config", "generation_config"):
        (tmp_path / f"{file}.json").write_text(json.dumps(configs.get(file, {})))
    return tmp_path


LLAMA = {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}}


@pytest.mark.parametrize(
    ("configs", "kind"),
    [
        ({}, "sentencepiece"),
        (LLAMA | {"config": {"model_type": "baichuan"}}, "sentencepiece"),
        ({"tokenizer_config": {"tokenizer_class": "BaiChuanTokenizer"}}, "sentencepiece (Baichuan)"),
        ({"config": {"tokenizer_class": "BaichuanTokenizer"}}, "sentencepiece (Baichuan)"),
        ({"config": {"model_type": "baichuan"}}, "sentencepiece (Baichuan)"),
        ({"config": {"architectures": ["BaiChuanForCausalLM"]}}, "sentencepiece (Baichuan)"),
        ({"config": {"architectures": []}}, "sentencepiece"),
        ({"tokenizer_config": {"tokenizer_class": "ChatGLMTokenizer"}}, "sentencepiece (ChatGLM3)"),
        ({"config": {"model_type": "chatglm"}}, "sentencepiece (ChatGLM3)"),
        ({"config": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b-32k"}}, "sentencepiece (ChatGLM2)"),
        (
            {"config": {"model_type": "chatglm"}, "tokenizer_config": {"name_or_path": "THUDM/ChatGLM2-6B"}},
            "sentencepiece (ChatGLM2)",
        ),
    ],
)  # fmt: skip
def test_whose_rules_a_sentencepiece_model_follows(tmp_path: Path, configs: dict[str, Any], kind: str) -> None:
    assert load_tokenizer(folder(tmp_path, "spm_chatglm3", **configs)).kind == kind


def test_chatglm2_has_no_roles(tmp_path: Path) -> None:
    config = {"model_type": "chatglm", "_name_or_path": "chatglm2", "eos_token_id": 2}
    second = load_tokenizer(folder(tmp_path, "spm_chatglm3", config=config))
    third = load_tokenizer(GOLDEN / "spm_chatglm3")
    assert second.vocab_size == 435 and third.vocab_size == 439
    assert second.eos_token_ids == (2,) and third.eos_token_ids == (2, 436, 438)
    assert second.encode("今天") == third.encode("今天") and second.prefix == third.prefix == (431, 433)
    assert second.decode([431, 433, 436]) == "" and second.token_to_id("<|user|>") is None
    assert third.id_to_token(436) == "<|user|>" and third.token_to_id("sop") == 433 and third.id_to_token(439) is None


def test_a_special_token_begins_a_new_text() -> None:
    tokenizer = load_tokenizer(GOLDEN / "spm_chatglm3")
    user, word = tokenizer.token_to_id("<|user|>"), tokenizer.token_to_id("▁the")
    assert user is not None and word is not None
    assert tokenizer.decode([word, word, user, word, word], False) == "the the<|user|>the the"
    assert tokenizer.decode([word, word, user, word, word]) == "the thethe the"
    answer = IncrementalDetokenizer(tokenizer, [user, word, user])
    assert answer.push([word, word]) == "the the"
    half = tokenizer.encode("谢", add_special_tokens=False)[1:-1]
    assert tokenizer.decode([*half, user, *half], False) == "\ufffd" * len(half) + "<|user|>" + "\ufffd" * len(half)


def test_no_text_makes_special_tokens() -> None:
    tokenizer = load_tokenizer(GOLDEN / "spm_chatglm3")
    text = "[gMASK]sop<|user|></s><|assistant|>"
    assert not set(tokenizer.encode(text, add_special_tokens=False)) & tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


# ---- ChatGLM-6B ----------------------------------------------------------------------------------------------------


def chatglm1(tmp_path: Path, **configs: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(folder(tmp_path, "spm_chatglm1", **configs))


def test_the_ids_of_old_exports_begin_after_image_tokens(tmp_path: Path) -> None:
    slim = load_tokenizer(GOLDEN / "spm_chatglm1")
    old = chatglm1(tmp_path)
    assert old.vocab_size == slim.vocab_size + 20_000
    assert old.encode("a  b") == [20_000 + i for i in slim.encode("a  b")]
    assert old.decode([5, *old.encode("a  b"), 19_999]) == "a  b" and old.token_bytes(5) is None
    assert old.eos_token_ids == (20_090,) and old.special_ids == {20_000 + i for i in slim.special_ids}
    assert chatglm1(tmp_path, config={"bos_token_id": 89}).encode("a") == slim.encode("a")
    assert chatglm1(tmp_path, config={"bos_token_id": 3}).encode("a") == old.encode("a")
    written = {"num_image_tokens": 7}
    assert chatglm1(tmp_path, config={"bos_token_id": 89}, tokenizer_config=written).vocab_size == slim.vocab_size + 7


@pytest.mark.parametrize("value", [-1, 1 << 40, "0", 1.5, True])
def test_a_wrong_number_of_image_tokens(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: num_image_tokens"):
        chatglm1(tmp_path, tokenizer_config={"num_image_tokens": value})


def test_runs_of_spaces() -> None:
    tokenizer = load_tokenizer(GOLDEN / "spm_chatglm1")
    name = tokenizer.id_to_token
    for count, runs in [(1, []), (2, [2]), (80, [80]), (81, [80]), (83, [80, 3]), (240, [80, 80, 80])]:
        ids = tokenizer.encode("a" + " " * count + "b", add_special_tokens=False)
        assert [name(i) for i in ids if "blank" in (name(i) or "")] == [f"<|blank_{run}|>" for run in runs]
        assert tokenizer.decode(ids) == "a" + " " * count + "b"


def test_cleaning_of_a_text(tmp_path: Path) -> None:
    slim = {"num_image_tokens": 0}
    plain = chatglm1(tmp_path, tokenizer_config=slim)
    cleaning = chatglm1(tmp_path, tokenizer_config=slim | {"remove_space": True, "do_lower_case": True})
    assert cleaning.encode("  One \n two  ") == plain.encode("one two") != plain.encode("  One \n two  ")


def test_marks_that_are_spelled_out_stand_for_spaces_too() -> None:
    """The family's decoder replaces marks in the finished text, however they came about."""
    tokenizer = load_tokenizer(GOLDEN / "spm_chatglm1")

    def spelled(text: str) -> list[int]:
        ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
        return [i for i in ids if i is not None]

    for text, shown in [
        ("a<n>b", "a\nb"),
        ("<|tab|><|blank_3|>x", "\t   x"),
        ("<|blank_80|><", " " * 80 + "<"),
        ("<|blank_81|><|blank_1|><|blank_|><|blank_100|>", "<|blank_81|><|blank_1|><|blank_|><|blank_100|>"),
        ("<<n><|<n>", "<\n<|\n"),
        ("<\n<n", "<\n<n"),
    ]:
        assert len(spelled(text)) == len(text) and tokenizer.decode(spelled(text)) == shown
    stream, sent = IncrementalDetokenizer(tokenizer), ""
    for token_id in spelled("a<|blank_12|>"):
        sent += stream.push([token_id])
        assert ("a" + " " * 12).startswith(sent)
    assert sent + stream.flush() == "a" + " " * 12


def test_an_answer_to_a_whole_prompt_begins_a_text() -> None:
    tokenizer = load_tokenizer(GOLDEN / "spm_chatglm1")
    answer = tokenizer.encode("Hello", add_special_tokens=False)
    stream = IncrementalDetokenizer(tokenizer, tokenizer.encode("Hello"))
    assert stream.push(answer) + stream.flush() == "Hello"


def test_a_model_without_the_tokens_of_chatglm(tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "spm_llama" / "tokenizer.model", tmp_path / "ice_text.model")
    with pytest.raises(ModelError, match=r"ice_text\.model: the token \[gMASK\] is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["spm_chatglm1", "spm_chatglm3", "spm_baichuan2"])
@pytest.mark.parametrize("content", [b"", b"\n", bytes(range(256)) * 16, b"\x0a" * 1000, b"\x00" * 100])
def test_broken_models(tmp_path: Path, kind: str, content: bytes) -> None:
    own = json.loads((GOLDEN / kind / "tokenizer_config.json").read_text(encoding="utf-8"))
    path = folder(tmp_path, kind, tokenizer_config=own)
    name = "ice_text.model" if kind == "spm_chatglm1" else "tokenizer.model"
    (path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_tokenizer(path)


# ---- Baichuan ------------------------------------------------------------------------------------------------------


def test_baichuan_has_no_bos_and_finds_its_reserved_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder(tmp_path, "spm_baichuan2", config={"model_type": "baichuan"}))
    assert tokenizer.encode("a<reserved_106>")[-1] == tokenizer.token_to_id("<reserved_106>") == 7
    assert tokenizer.bos_token_id == 1 and 1 not in tokenizer.encode("a") and tokenizer.eos_token_ids == (2,)
    assert tokenizer.decode([1, 269, 2, 7], False) == tokenizer.decode([1, 269, 2, 7]) == "a<reserved_106>"
    bos = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": True}
    assert load_tokenizer(folder(tmp_path, "spm_baichuan2", tokenizer_config=bos)).encode("a")[0] == 1
