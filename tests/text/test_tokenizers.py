"""Tokenizers against reference ids and texts, and against every kind of broken folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.text import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizers"
JSON_KINDS = ["bytelevel_qwen", "bytelevel_llama3", "bytelevel_glm4", "spm_llama", "spm_gemma"]
FAMILY_KINDS = ["tiktoken_qwen", "tiktoken_glm4", "spm_chatglm1", "spm_chatglm3", "spm_baichuan2"]


def cases(kind: str) -> Any:
    return json.loads((GOLDEN / kind / "cases.json").read_text(encoding="utf-8"))


def folder_with(tmp_path: Path, kind: str, *names: str) -> Path:
    for name in names:
        shutil.copyfile(GOLDEN / kind / name, tmp_path / name)
    return tmp_path


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(value | changes), encoding="utf-8")


@pytest.fixture(params=JSON_KINDS + FAMILY_KINDS)
def golden(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    return load_tokenizer(GOLDEN / request.param), cases(request.param)


def test_golden_encode(golden: tuple[Tokenizer, Any]) -> None:
    tokenizer, expected = golden
    assert tokenizer.vocab_size == expected["vocab_size"]
    is_framed = tokenizer.kind != "tiktoken (GLM-4)"  # its cases are without what stands before a text
    for case in expected["encode"]:
        assert tokenizer.encode(case["text"], add_special_tokens=is_framed) == case["ids"], case["text"]


def test_golden_decode(golden: tuple[Tokenizer, Any]) -> None:
    tokenizer, expected = golden
    for case in expected["encode"] + expected["decode_random_ids"]:
        assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["decoded"]
        without = [i for i in case["ids"] if i not in tokenizer.special_ids]
        if "decoded_skip_special" in case:
            assert tokenizer.decode(case["ids"]) == case["decoded_skip_special"]
        elif len(without) == len(case["ids"]):
            assert tokenizer.decode(case["ids"]) == case["decoded"]
    for case in expected["streaming"]:
        for length, text in enumerate(case["prefix_decoded"], start=1):
            assert tokenizer.decode(case["ids"][:length], skip_special_tokens=False) == text


def test_golden_sentencepiece_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, "spm_llama", "tokenizer.model"))
    expected = cases("spm_llama")
    assert tokenizer.kind == "sentencepiece" and tokenizer.vocab_size == expected["vocab_size"]
    assert tokenizer.bos_token_id == 1 and tokenizer.eos_token_ids == (2,)
    for case in expected["sentencepiece_encode"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert tokenizer.encode(case["text"]) == [1, *case["ids"]]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    for case in expected["sentencepiece_decode_random_ids"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_sentencepiece_with_its_config_equals_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, "spm_llama", "tokenizer.model", "tokenizer_config.json"))
    for case in cases("spm_llama")["encode"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]


def test_sentencepiece_gemma_has_no_dummy_prefix(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, "spm_gemma", "tokenizer.model", "tokenizer_config.json"))
    expected = load_tokenizer(GOLDEN / "spm_gemma")
    for text in ("a b", " a", "x<end_of_turn>\n y", "今天 a"):
        assert tokenizer.encode(text) == expected.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == expected.decode(expected.encode(text))


def test_sentencepiece_flags(tmp_path: Path) -> None:
    folder_with(tmp_path, "spm_llama", "tokenizer.model", "tokenizer_config.json")
    config = tmp_path / "tokenizer_config.json"
    legacy = load_tokenizer(tmp_path).encode("a</s>a")
    edit_json(config, legacy=False)
    assert load_tokenizer(tmp_path).encode("a</s>a") != legacy
    edit_json(config, add_prefix_space=False, add_bos_token=False, add_eos_token=True)
    bare = load_tokenizer(tmp_path)
    assert bare.encode("a")[-1] == 2 and bare.encode("a", add_special_tokens=False) == [bare.token_to_id("a")]
    assert bare.decode(bare.encode(" a")) == " a"


def test_sentencepiece_added_tokens(tmp_path: Path) -> None:
    folder_with(tmp_path, "spm_llama", "tokenizer.model")
    edit_json(tmp_path / "added_tokens.json", **{"<tool>": 430, "<tool>x": 431})
    entry = {"content": "<|end|>", "special": True, "rstrip": True}
    edit_json(tmp_path / "tokenizer_config.json", added_tokens_decoder={"432": entry})
    tokenizer = load_tokenizer(tmp_path)
    plain = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.encode("a<tool>x<|end|> \n a", add_special_tokens=False) == [*plain, 431, 432, *plain]
    assert tokenizer.vocab_size == 433 and tokenizer.special_ids >= {1, 2, 432}
    assert tokenizer.decode([*plain, 430, 432]) == "a<tool>"
    assert tokenizer.decode([*plain, 430, 432], skip_special_tokens=False) == "a<tool><|end|>"


def test_llama_config_decides_over_tokenizer_json(tmp_path: Path) -> None:
    folder_with(tmp_path, "spm_llama", "tokenizer.json", "tokenizer_config.json")
    config = tmp_path / "tokenizer_config.json"
    assert load_tokenizer(tmp_path).encode("a") == [1, 263]
    edit_json(config, add_bos_token=False, add_eos_token=True)
    assert load_tokenizer(tmp_path).encode("a") == [263, 2]
    edit_json(config, add_prefix_space=False)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.id_to_token(tokenizer.encode("a")[0]) == "a"
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"
    edit_json(tmp_path / "tokenizer.json", post_processor=None)
    edit_json(config, add_bos_token=None, add_eos_token=None)
    assert load_tokenizer(tmp_path).encode("a")[0] == 1


def test_training_leftovers_do_not_change_a_prompt(tmp_path: Path) -> None:
    folder_with(tmp_path, "bytelevel_qwen", "tokenizer.json")
    expected = load_tokenizer(tmp_path).encode("hello, world")
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "!"}
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"] | {"dropout": 0.9}
    edit_json(tmp_path / "tokenizer.json", truncation=truncation, padding=padding, model=model)
    assert load_tokenizer(tmp_path).encode("hello, world") == expected


def test_end_tokens_come_from_the_most_specific_file(tmp_path: Path) -> None:
    folder_with(tmp_path, "bytelevel_qwen", "tokenizer.json", "tokenizer_config.json")
    assert load_tokenizer(tmp_path).eos_token_ids == (422,)
    edit_json(tmp_path / "config.json", eos_token_id=7)
    assert load_tokenizer(tmp_path).eos_token_ids == (7,)
    edit_json(tmp_path / "generation_config.json", eos_token_id=[8, 9])
    assert load_tokenizer(tmp_path).eos_token_ids == (8, 9)


def test_special_and_plain_added_tokens() -> None:
    tokenizer = load_tokenizer(GOLDEN / "bytelevel_qwen")
    think = tokenizer.token_to_id("<think>")
    assert think is not None and think not in tokenizer.special_ids
    assert tokenizer.decode([think, 422]) == "<think>"


def test_token_bytes_join_to_the_text(golden: tuple[Tokenizer, Any]) -> None:
    tokenizer, expected = golden
    for case in expected["encode"]:
        joined = b"".join(tokenizer.token_bytes(i) or b"" for i in case["ids"]).decode("utf-8")
        assert joined.replace(" ", "") == case["decoded"].replace(" ", "")
    assert tokenizer.token_bytes(tokenizer.vocab_size) is None


@pytest.mark.parametrize("ids", [[-1], [1 << 31], [1 << 70], ["1"], [1.0], [None]])
def test_what_is_no_token_id(golden: tuple[Tokenizer, Any], ids: list[Any]) -> None:
    with pytest.raises(RequestError, match="token id"):
        golden[0].decode(ids)


def test_ids_without_a_token_decode_to_nothing(golden: tuple[Tokenizer, Any]) -> None:
    ids = golden[0].encode("ab")
    assert golden[0].decode([ids[0], 100_000, *ids[1:]]) == golden[0].decode(ids)


@pytest.mark.parametrize("text", ["a\ud800b", None, b"a", 3])
def test_what_is_no_text(golden: tuple[Tokenizer, Any], text: Any) -> None:
    with pytest.raises(RequestError, match="text"):
        golden[0].encode(text)


def test_other_decoders_work_too(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "hello": 1, "world": 2}, "unk_token": "[UNK]"}
    edit_json(tmp_path / "tokenizer.json", version="1.0", model=model, pre_tokenizer={"type": "Whitespace"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello world") == [1, 2] and tokenizer.decode([1, 2]) == "hello world"


def test_a_text_outside_the_vocabulary(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"hello": 0}, "unk_token": "[UNK]"}
    edit_json(tmp_path / "tokenizer.json", version="1.0", model=model)
    with pytest.raises(RequestError, match="cannot encode"):
        load_tokenizer(tmp_path).encode("world")


# ---- broken folders ------------------------------------------------------------------------------------------------

BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BROKEN_TOKENIZER_JSON = {
    "empty": b"",
    "truncated": b'{"version": "1.0", "model": {"type": "BPE", "voc',
    "a list": b"[]",
    "no model": b"{}",
    "binary": bytes(range(256)) * 64,
    "null": b"null",
    "deep": b'{"model":' + b"[" * 100_000,
    "unknown model": json.dumps({"version": "1.0", "model": {"type": "Nonesuch", "vocab": {}}}).encode(),
    "wrong vocab": json.dumps({"version": "1.0", "model": BPE | {"vocab": ["a"]}}).encode(),
    "negative id": json.dumps({"version": "1.0", "model": BPE | {"vocab": {"a": -1}}}).encode(),
    "huge id": json.dumps({"version": "1.0", "model": BPE | {"vocab": {"a": 1 << 40}}}).encode(),
    "merge of nothing": json.dumps({"version": "1.0", "model": BPE | {"merges": ["x y"]}}).encode(),
    "no vocab": json.dumps({"version": "1.0", "model": BPE | {"vocab": {}}}).encode(),
    "bad regex": json.dumps(
        {
            "version": "1.0",
            "model": BPE,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
        }
    ).encode(),
    "template without token": json.dumps(
        {
            "version": "1.0",
            "model": BPE,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        }
    ).encode(),
}


@pytest.mark.parametrize("content", BROKEN_TOKENIZER_JSON.values(), ids=BROKEN_TOKENIZER_JSON.keys())
def test_broken_tokenizer_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "<a>"}}},
        {"added_tokens_decoder": {"500": {"content": ""}}},
        {"added_tokens_decoder": {"500": {"content": 3}}},
        {"added_tokens_decoder": {"500": "<a>"}},
        {"added_tokens_decoder": {"9" * 5000: {"content": "<a>"}}},
        {"bos_token": 7},
        {"eos_token": {"content": []}},
        {"add_bos_token": "yes"},
        {"add_eos_token": True, "eos_token": "<nonesuch>"},
    ],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_broken_tokenizer_config(tmp_path: Path, changes: dict[str, Any], file: str) -> None:
    folder_with(tmp_path, "spm_llama", file, "tokenizer_config.json")
    edit_json(tmp_path / "tokenizer_config.json", **changes)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"eos_token_id": ' + b"9" * 9999 + b"}"]
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_broken_json_beside_the_tokenizer(tmp_path: Path, name: str, content: bytes) -> None:
    folder_with(tmp_path, "spm_llama", "tokenizer.json")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", ["2", [1, None], -1, 1.5, True, {}])
def test_broken_end_tokens(tmp_path: Path, value: Any) -> None:
    folder_with(tmp_path, "spm_llama", "tokenizer.json")
    edit_json(tmp_path / "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelError, match="eos_token_id"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\x0a", bytes(range(256)) * 16, b"version https://git-lfs.github.com"]
)
def test_broken_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


MUTANTS = """
import random, sys
from pathlib import Path
from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.text import load_tokenizer
folder, whole = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
file, rng = folder / sys.argv[3], random.Random(7)
for turn in range(int(sys.argv[4])):
    data = bytearray(whole)
    if turn % 2:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    else:
        del data[rng.randrange(len(data)) :]
    file.write_bytes(data)
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("Hello 今天 </s> 123"))
    except (ModelError, RequestError):
        pass
print("alive")
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("spm_llama", "tokenizer.model"),
        ("bytelevel_qwen", "tokenizer.json"),
        ("tiktoken_qwen", "qwen.tiktoken"),
        ("spm_chatglm1", "ice_text.model"),
    ],
)
def test_mutated_files_never_crash(tmp_path: Path, kind: str, name: str) -> None:
    command = [sys.executable, "-P", "-c", MUTANTS, str(tmp_path), str(GOLDEN / kind / name), name, "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n", done.stderr


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer found"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="not a folder"):
        load_tokenizer(tmp_path / "nonesuch")
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ModelError, match="not a file"):
        load_tokenizer(tmp_path)


def test_a_file_of_absurd_size(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="at most"):
        load_tokenizer(tmp_path)


def test_importing_text_loads_no_library() -> None:
    code = (
        "import sys, dashinfer_lite.text, dashinfer_lite.text.tokenizer, dashinfer_lite.text.chat\n"
        "import dashinfer_lite.text.detokenize, dashinfer_lite.text.stop\n"
        "print({'tokenizers', 'sentencepiece', 'jinja2', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
