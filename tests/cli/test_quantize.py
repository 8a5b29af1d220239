"""`quantize`: the folder that it writes gives the bits of the model quantized while loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_folders import TOKENIZER_FILES, tiny_config, write_model_folder

from dashinfer_lite import LLM, SamplingParams
from dashinfer_lite.cli.main import main
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.loading import demo_model_folder

PROMPTS = [list(range(5, 40)), [7, 8, 9]]


def logprobs(path: Path, quant: str | QuantPolicy | None = None, head: str | None = None) -> list[object]:
    """What the model says about two prompts and its answers to them."""
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=3, ignore_eos=True)
    with LLM(path, quant=quant, head=head, kv_memory="16MiB") as llm:
        return [(output.prompt_logprobs, output.outputs[0].logprobs) for output in llm.generate(PROMPTS, params)]


@pytest.mark.parametrize("quant", ["a16w8", "a16w4-g32", "a8w8", "int4"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_the_folder_is_the_model_quantized_while_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quant: str, is_tied: bool
) -> None:
    """Bit for bit, with the folder's own mode as the default."""
    config = tiny_config("qwen3", tie_word_embeddings=is_tied, torch_dtype="bfloat16")
    source, target = write_model_folder(tmp_path / "in", config), tmp_path / "out"
    assert main(["quantize", str(source), str(target), "--quant", quant]) == 0
    assert "matrices as a" in capsys.readouterr().out
    assert logprobs(target) == logprobs(source, quant)
    assert logprobs(target) != logprobs(source)


def test_overrides_and_head_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In what is written, in what is said, and in the policy that the folder comes with."""
    source, target = write_model_folder(tmp_path / "in", tiny_config("llama")), tmp_path / "out"
    overrides = ["--override", "model.layers.0.*=none", "--override", "*.down_proj=a16w8"]
    assert main(["quantize", str(source), str(target), "--quant", "a16w4-g32", "--head", "bf16", *overrides]) == 0
    said = capsys.readouterr().out
    assert "6 matrices as a16w4-g32" in said and "1 matrix as a16w8" in said
    quantization = json.loads((target / "config.json").read_text())["quantization_config"]
    assert quantization["overrides"] == {"model.layers.0.*": None, "*.down_proj": "a16w8"}
    assert quantization["modules"]["model.layers.1.mlp.down_proj"]["bits"] == 8
    assert not any(name.startswith("model.layers.0") or name == "lm_head" for name in quantization["modules"])
    policy = QuantPolicy.parse("a16w4-g32", overrides=quantization["overrides"], head="bf16")
    assert logprobs(target) == logprobs(source, policy)


def test_the_demo_model_chats_from_its_quantized_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its tokenizer and its template; a third of the size."""
    target = tmp_path / "int4"
    assert main(["quantize", str(demo_model_folder()), str(target), "--quant", "a16w4-g128"]) == 0
    assert "MiB became" in capsys.readouterr().out
    assert (target / "model.safetensors").stat().st_size < 0.4 * (
        demo_model_folder() / "model.safetensors"
    ).stat().st_size
    assert all((target / name).exists() == (demo_model_folder() / name).exists() for name in TOKENIZER_FILES)
    assert main(["chat", "--model", str(target), "--once", "What is 17 + 25?"]) == 0
    assert capsys.readouterr().out.startswith("17 + 25 = 42\n")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--quant", "a4w4"], 2, "a4w4"),
        (["--quant", "none", "--head", "bf16"], 2, "nothing is to be quantized"),
        (["--override", "*=a16w9"], 2, "a16w9"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    """And nothing is written."""
    source = write_model_folder(tmp_path / "in", tiny_config("llama"))
    assert main(["quantize", str(source), str(tmp_path / "out"), *args]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


def test_what_is_integers_already_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quantizing twice would only lose; the message says what to do."""
    source, target = write_model_folder(tmp_path / "in", tiny_config("llama")), tmp_path / "out"
    assert main(["quantize", str(source), str(target)]) == 0
    assert main(["quantize", str(target), str(tmp_path / "again")]) == 1
    assert "quantize the model it was made from" in capsys.readouterr().err
    assert main(["quantize", str(source), str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["quantize", str(source), str(target), "--force", "--quant", "int8"]) == 0


@pytest.mark.parametrize("override", ["down_proj", "=a16w8", "x="])
def test_an_override_is_a_pattern_and_a_mode(override: str) -> None:
    """argparse's own error."""
    with pytest.raises(SystemExit) as ended:
        main(["quantize", "a", "b", "--override", override])
    assert ended.value.code == 2
