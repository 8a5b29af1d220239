"""The commands in this process: info, bench, options, help."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite import RequestError, SamplingParams
from dashinfer_lite.cli.guided import add_guided_options, guided
from dashinfer_lite.cli.main import COMMANDS, main
from dashinfer_lite.cli.options import add_sampling_options, sampling_params
from dashinfer_lite.loading import demo_model_folder


def info(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """What `info --json` says."""
    assert main(["info", "--json", *args]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_info_says_why_each_tier_is_or_is_not_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tier is used; DASHINFER_ISA changes which, and the text says so."""
    facts = info(capsys)
    assert [tier["used"] for tier in facts["tiers"]].count(True) == 1
    assert all(tier["reason"] for tier in facts["tiers"])
    assert all(tier["runs"] or tier["reason"].startswith("this machine lacks ") for tier in facts["tiers"])
    monkeypatch.setenv("DASHINFER_ISA", "scalar")
    scalar = next(tier for tier in info(capsys)["tiers"] if tier["name"] == "scalar")
    assert scalar["used"]
    assert "DASHINFER_ISA" in scalar["reason"]
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "Tiers of the CPU kernels" in text
    assert "million parameters" in text


def test_info_measures_the_demo_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes from the configuration; bytes from the program."""
    model = info(capsys)["model"]
    assert model["demo"] and model["chat_template"]
    assert model["architecture"] == "Qwen3ForCausalLM"
    assert model["parameters"] == 5_770_000 // 10_000 * 10_000 or 5_700_000 < model["parameters"] < 5_800_000
    assert (model["layers"], model["hidden"], model["heads"], model["kv_heads"], model["head_size"]) == (
        6,
        256,
        4,
        2,
        64,
    )
    assert model["memory"]["weights_bytes"] >= 2 * model["parameters"]
    assert model["memory"]["kv_token_bytes"] == 2 * 6 * 2 * 64 * 2
    assert info(capsys, "--dtype", "fp32")["model"]["memory"]["kv_token_bytes"] == 2 * 6 * 2 * 64 * 4


def test_info_takes_a_folder_and_prints_its_program(capsys: pytest.CaptureFixture[str], golden: Path) -> None:
    """The program is the table that `Program.dump` gives."""
    facts = info(capsys, str(golden / "llama2"), "--program")
    assert facts["model"]["architecture"] == "LlamaForCausalLM"
    assert facts["model"]["tokenizer"]["kind"]
    assert "linear" in facts["program"]
    assert facts["model"] == info(capsys, "--model", str(golden / "llama2"))["model"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("mistral", "mistral"),
        ("qwen_v1", "qwen"),
        ("chatglm1", "chatglm1"),
        ("chatglm2", "chatglm"),
        ("glm4_chatglm", "chatglm"),
        ("glm4", "glm4"),
        ("baichuan2_13b", "baichuan"),
        ("gemma2", "gemma2"),
        ("phi3", "phi3"),
    ],
)
def test_info_recognizes_every_family(capsys: pytest.CaptureFixture[str], golden: Path, name: str, family: str) -> None:
    """Family, sizes and the memory of each mode; a smaller type never needs more."""
    model = info(capsys, str(golden / name))["model"]
    assert model["family"] == family
    assert model["heads"] % model["kv_heads"] == 0 and model["layers"] == (28 if family == "chatglm1" else 2)
    modes = model["memory"]["modes"]
    assert list(modes) == ["none", "a16w8", "a16w4-g128"]
    assert modes["none"] == model["memory"]["weights_bytes"] > modes["a16w8"] > modes["a16w4-g128"]
    assert main(["info", str(golden / name)]) == 0
    assert "packed weights by mode: none" in capsys.readouterr().out


def test_info_describes_devices(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with whether it can be used, and why not."""
    devices = {device["name"]: device for device in info(capsys)["devices"]}
    assert devices["cpu"]["usable"]
    assert devices["cuda"]["usable"] or devices["cuda"]["reason"]


def test_bench_measures_every_workload(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Random weights, no disk, no tokenizer: table, JSON and picture. Nothing is said about the times."""
    results, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    assert main(["bench", "--shape", "tiny", "--quick", "--json", str(results), "--plot", str(plot)]) == 0
    table = capsys.readouterr().out
    found = json.loads(results.read_text())
    names = [workload["name"] for workload in found["workloads"]]
    assert names == ["prefill 64", "decode @32", "batch 4", "mixed 4"]
    for workload in found["workloads"]:
        assert workload["name"] in table
        assert workload["tokens_per_s"] > 0
        assert workload["read_bytes_per_s"] > 0
    decode = found["workloads"][1]
    assert decode["roof"] == "read"
    assert decode["share_of_roof"] > 0
    assert decode["host_s_per_step"] is not None
    assert ET.parse(plot).getroot().tag.endswith("svg")


def test_bench_takes_a_folder(capsys: pytest.CaptureFixture[str], golden: Path) -> None:
    """A real folder, one workload, JSON on the output alone."""
    assert main(["bench", "--model", str(golden / "qwen2_5"), "--quick", "--only", "decode @32", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [workload["name"] for workload in found["workloads"]] == ["decode @32"]


def test_quantized_weights_and_cache_are_options_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """What they change is measured by `info`, named by `bench`, and seen in what `generate` says."""
    memory = {name: info(capsys, *name.split())["model"]["memory"] for name in ("", "--quant a16w8 --kv-cache int8")}
    plain, quantized = memory.values()
    assert quantized["weights_bytes"] < 0.52 * plain["weights_bytes"]
    assert quantized["kv_token_bytes"] == 2 * 6 * 2 * (64 + 8)
    headless = info(capsys, "--quant", "a16w8", "--head", "bf16")["model"]
    assert headless["quant"] == "a16w8"
    assert headless["memory"]["weights_bytes"] == pytest.approx(quantized["weights_bytes"] + 4096 * 256, rel=0.01)
    bench = [
        "bench",
        "--shape",
        "tiny",
        "--quick",
        "--only",
        "decode @32",
        "--quant",
        "a16w4-g32",
        "--kv-cache",
        "uint4",
    ]
    assert main(bench) == 0
    assert "a16w4-g32" in capsys.readouterr().out
    seen = set()
    for more in ([], ["--quant", "int4"], ["--quant", "int4", "--head", "bf16"], ["--kv-cache", "uint4"]):
        assert main(["generate", "Once upon a time", "--max-tokens", "2", "--json", "--logprobs", "0", *more]) == 0
        seen.add(str(json.loads(capsys.readouterr().out)["outputs"][0]["logprobs"]))
    assert len(seen) == 4


def test_bench_within_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Sequences take turns; memory that does not hold one is an error."""
    command = ["bench", "--shape", "tiny", "--quick", "--only", "batch 4"]
    assert main([*command, "--kv-memory", "32KiB"]) == 0
    assert "batch 4" in capsys.readouterr().out
    assert main([*command, "--kv-memory", "2KiB"]) != 0
    assert "raise kv_memory" in capsys.readouterr().err


def test_bench_refuses_a_short_context(capsys: pytest.CaptureFixture[str], golden: Path) -> None:
    """The golden models' contexts do not hold the full workloads."""
    assert main(["bench", "--model", str(golden / "qwen2_5"), "--only", "prefill 2048"]) == 2
    assert "context" in capsys.readouterr().err


def test_debug_lets_the_error_through() -> None:
    """--debug is for those who want the traceback."""
    with pytest.raises(RequestError):
        main(["generate", "x", "--n", "2", "--debug"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command and every option says what it is, in lines of a sensible length."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "None" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_demo_model_is_part_of_the_package() -> None:
    """The default of every command."""
    assert (demo_model_folder() / "model.safetensors").is_file()


def options(*args: str) -> SamplingParams:
    """The sampling parameters of a command line."""
    parser = argparse.ArgumentParser()
    add_sampling_options(parser, max_tokens=16)
    return sampling_params(parser.parse_args(args))


def test_sampling_options_reach_the_parameters() -> None:
    """Every parameter that has an option, by its own name."""
    given = options(
        "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.1",
        "--presence-penalty", "0.2", "--frequency-penalty", "0.3", "--no-repeat-ngram-size", "4", "--min-tokens", "2",
        "--max-tokens", "5", "--seed", "9", "--stop", "a", "--stop", "b", "--stop-token-id", "3", "--bad-word", "w",
        "--logit-bias", "5=-1.5", "--logit-bias", "6=2", "--ignore-eos", "--include-stop", "--keep-special-tokens",
    )  # fmt: skip
    assert given == SamplingParams(
        temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, no_repeat_ngram_size=4, min_tokens=2, max_tokens=5, seed=9, stop=["a", "b"],
        stop_token_ids=[3], bad_words=["w"], logit_bias={5: -1.5, 6: 2.0}, ignore_eos=True,
        include_stop_str_in_output=True, skip_special_tokens=False,
    )  # fmt: skip


def test_sampling_defaults_are_greedy() -> None:
    """The same command gives the same answer."""
    assert options() == SamplingParams(temperature=0.0, max_tokens=16)


def test_guided_options(tmp_path: Path) -> None:
    """At most one of them; files are read, and what is wrong in them is said."""
    from dashinfer_lite import Guided

    parser = argparse.ArgumentParser(exit_on_error=False)
    add_guided_options(parser)
    schema, grammar, binary = tmp_path / "schema.json", tmp_path / "list.lark", tmp_path / "binary"
    schema.write_text('{"type": "null"}')
    grammar.write_text('start: "a"')
    binary.write_bytes(b"\xff")
    for arguments, expected in (
        ([], None),
        (["--json-object"], Guided(json_object=True)),
        (["--json-schema", str(schema)], Guided(json_schema={"type": "null"})),
        (["--regex", "a+"], Guided(regex="a+")),
        (["--choice", "yes,no"], Guided(choice=["yes", "no"])),
        (["--grammar", str(grammar)], Guided(grammar='start: "a"')),
    ):
        assert guided(parser.parse_args(arguments)) == expected
    with pytest.raises(argparse.ArgumentError, match="not allowed with"):
        parser.parse_args(["--json-object", "--regex", "a"])
    for name, reason in ((grammar, "no valid JSON"), (binary, "not UTF-8")):
        with pytest.raises(RequestError, match=reason):
            guided(parser.parse_args(["--json-schema", str(name)]))
    with pytest.raises(RequestError, match="different texts"):
        guided(parser.parse_args(["--choice", "a,,b"]))


def test_generate_follows_a_regex(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance", reason="guided output needs llguidance")
    assert main(["generate", "The code is", "--regex", "[0-9]{4}", "--quiet"]) == 0
    code = capsys.readouterr().out.strip()
    assert len(code) == 4 and code.isdigit()
    assert main(["generate", "The code is", "--regex", "(a", "--quiet"]) == 2
    assert "unclosed group" in capsys.readouterr().err
