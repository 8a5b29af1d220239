"""`eval`: statistics against hand-made numbers, scoring against the engine's, the judge against the recipe's."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dashinfer_lite import LLM, RequestError, SamplingParams
from dashinfer_lite.cli import eval_text
from dashinfer_lite.cli.eval_data import built_in, evenly, parse_items
from dashinfer_lite.cli.eval_judge import is_right
from dashinfer_lite.cli.eval_mode import Mode
from dashinfer_lite.cli.eval_stats import compare, mcnemar, mean_interval
from dashinfer_lite.cli.eval_text import TextScore, score_text, windows_of
from dashinfer_lite.cli.main import main
from dashinfer_lite.loading import LoadedModel, Options, load_model

RECIPE = Path(__file__).resolve().parents[2] / "examples/tiny_chat"
NAMES = frozenset(built_in("names.txt").split())


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    """The recipe's judge.py."""
    sys.path.insert(0, str(RECIPE))
    try:
        spec = importlib.util.spec_from_file_location("tiny_chat_judge", RECIPE / "judge.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def demo() -> Iterator[LoadedModel]:
    """The demo model without an engine."""
    model = load_model(None, Options(kv_memory="16MiB"))
    yield model
    model.close()


# ------------------------------------------------------------------------------------------------------- statistics --


def test_paired_interval_counts_what_differs() -> None:
    """By hand: 20 items, 3 gained, 1 lost; adjusted shares 4/22 and 2/22."""
    other = [True] * 10 + [False] * 10
    this = [True] * 9 + [False] + [True] * 3 + [False] * 7
    found = compare(other, this)
    assert (found.items, found.gained, found.lost, found.difference) == (20, 3, 1, 0.1)
    half = 1.959963984540054 * math.sqrt((6 / 22 - (2 / 22) ** 2) / 22)
    assert (found.low, found.high) == (pytest.approx(2 / 22 - half), pytest.approx(2 / 22 + half))
    assert found.p == pytest.approx(2 * (1 + 4) / 16)


def test_equal_runs_still_have_an_interval() -> None:
    """Nothing differs in 100 items: that says as much as 100 items can say, not that nothing ever would."""
    found = compare([True] * 100, [True] * 100)
    assert found.difference == 0
    assert -0.03 < found.low == -found.high < -0.02
    assert found.p == 1


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024), (7, 7, 1.0)])
def test_mcnemar_is_a_binomial_test(gained: int, lost: int, p: float) -> None:
    """Twice the smaller tail of tossing a coin for each item that differs."""
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(p)


def test_mean_interval() -> None:
    """The normal approximation; one value has none."""
    mean, half = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(1.959963984540054 * math.sqrt(5 / 3 / 4))
    assert math.isnan(mean_interval([1.0])[1])


# ------------------------------------------------------------------------------------------------------------- modes --


def test_modes_are_words() -> None:
    """Each part sets what it names."""
    assert Mode.parse("bf16") == Mode("bf16", dtype="bf16", quant="none")
    assert Mode.parse("stored") == Mode("stored")
    assert Mode.parse("a16w4-g128+kv-int8+head-bf16") == Mode(
        "a16w4-g128+kv-int8+head-bf16", quant="a16w4-g128", head="bf16", kv_cache="int8"
    )


@pytest.mark.parametrize("name", ["", "a16w8+", "a16w8+a8w8", "kv-int8+kv-bf16", "bf16+fp32"])
def test_a_mode_that_contradicts_itself_is_refused(name: str) -> None:
    """With the grammar."""
    with pytest.raises(RequestError, match="is not a mode"):
        Mode.parse(name)


# ------------------------------------------------------------------------------------------------------------- items --


def test_the_built_in_data_are_a_part_of_the_recipe_s(judge: ModuleType) -> None:
    """Items and text that the model has not seen; small enough for a wheel."""
    items = built_in("items.jsonl").splitlines()
    assert set(items) <= set((RECIPE / "eval/items.jsonl").read_text(encoding="utf-8").splitlines())
    assert len(items) == len(set(items)) == 100
    assert (RECIPE / "eval/heldout.txt").read_text(encoding="utf-8").startswith(built_in("text.txt"))
    assert frozenset(judge.NAMES) == NAMES
    assert sum(len(built_in(name).encode()) for name in ("items.jsonl", "text.txt", "names.txt")) < 100_000


def test_answers_are_judged_as_the_recipe_does(judge: ModuleType) -> None:
    """Every item with the reference's answer, with its expected text, and with wrong ones."""
    items = parse_items((RECIPE / "eval/items.jsonl").read_text(encoding="utf-8"), "items.jsonl")
    answers = {
        entry["id"]: entry["answer"]
        for entry in map(json.loads, (RECIPE / "eval/answers_float32.jsonl").read_text(encoding="utf-8").splitlines())
    }
    right = 0
    for item in items:
        expected = item["expected"]
        for answer in (
            answers[item["id"]],
            expected,
            f"\n {expected} ",
            f"{expected} Ada",
            f"{expected} Ada, Ida",
            "",
            "[" * 10_000,
        ):
            assert is_right(item, answer, NAMES) == _judged(judge, item, answer), (item["id"], answer[:40])
        right += is_right(item, answers[item["id"]], NAMES)
    assert right == 472


def _judged(judge: ModuleType, item: dict[str, Any], answer: str) -> bool:
    try:
        return bool(judge.judge(item, answer))
    except RecursionError:
        return False


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"messages": []}', "match is None"),
        ('{"match": "rhyme", "messages": []}', "match is 'rhyme'"),
        ('{"match": [], "messages": []}', "match is"),
        ('{"match": "exact", "messages": []}', "expected is None"),
        ('{"match": "exact", "expected": "x"}', "messages is None"),
        ('{"match": "exact", "expected": "x", "prompt": 5}', "prompt is 5"),
        ('{"match": "exact", "expected": "x", "prompt": "p", "max_tokens": true}', "max_tokens is True"),
    ],
)
def test_wrong_items_are_named_by_their_line(line: str, words: str) -> None:
    """One message for one mistake."""
    good = '{"match": "exact", "expected": "x", "prompt": "p"}'
    assert len(parse_items(f"{good}\n\n{good}", "f")) == 2
    with pytest.raises(RequestError, match="f, line 2: ") as error:
        parse_items(f"{good}\n{line}", "f")
    assert words in str(error.value)


def test_a_limit_spreads_over_the_items() -> None:
    """The first, and others as far apart as they can be."""
    items = [{"id": i} for i in range(10)]
    assert [item["id"] for item in evenly(items, 4)] == [0, 2, 5, 7]
    assert evenly(items, 0) == []
    assert evenly(items, None) == evenly(items, 99) == items


# -------------------------------------------------------------------------------------------------------------- text --


def text_tokens(demo: LoadedModel, count: int) -> list[int]:
    assert demo.tokenizer is not None
    return demo.tokenizer.encode(built_in("text.txt"), add_special_tokens=False)[:count]


def test_windows_leave_no_token_alone() -> None:
    """A last single token has nothing to predict it."""
    assert windows_of([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]
    assert windows_of([1, 2, 3], 8) == [[1, 2, 3]]


def test_likelihoods_are_the_engine_s(demo: LoadedModel) -> None:
    """Position by position those that prompt_logprobs report."""
    tokens = text_tokens(demo, 300)
    score = score_text(demo.executable, demo.program, windows_of(tokens, 128))
    with LLM() as llm:
        expected, best = [], []
        for window in windows_of(tokens, 128):
            params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
            [output] = llm.generate([window], params)
            for token, entry in zip(window[1:], (output.prompt_logprobs or [])[1:], strict=True):
                assert entry is not None
                expected.append(-entry[token].logprob)
                best.append(next(other for other, value in entry.items() if value.rank == 1))
    assert score.nll == pytest.approx(expected, abs=2e-6)
    assert score.best.tolist() == best


def test_chunks_and_kept_positions_change_nothing(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise the same likelihoods; the divergence is that of fewer positions."""
    windows = windows_of(text_tokens(demo, 200), 70)
    whole = score_text(demo.executable, demo.program, windows)
    assert len(whole.kept) == len(whole.nll) == 197
    monkeypatch.setattr(eval_text, "LOGIT_BYTES", 7 * 4 * demo.program.vocab_size)
    monkeypatch.setattr(eval_text, "KEPT_BYTES", 50 * 4 * demo.program.vocab_size)
    parts = score_text(demo.executable, demo.program, windows)
    assert np.array_equal(whole.nll, parts.nll)
    assert np.array_equal(whole.best, parts.best)
    assert parts.kept.tolist() == list(range(0, 197, 4))
    assert whole.logprobs is not None and parts.logprobs is not None
    assert np.array_equal(parts.logprobs, whole.logprobs[::4])


def test_divergence_is_that_of_the_formula(demo: LoadedModel) -> None:
    """Against float64, from a made-up reference; none from itself."""
    windows = windows_of(text_tokens(demo, 60), 60)
    own = score_text(demo.executable, demo.program, windows)
    assert own.logprobs is not None
    again = score_text(demo.executable, demo.program, windows, own)
    assert again.kl is not None and np.all(again.kl == 0)
    logits = np.random.default_rng(0).normal(0, 3, own.logprobs.shape)
    logits[:, 5] = -np.inf
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        other = TextScore(own.nll, own.best, own.kept, np.log(p).astype(np.float32))
    found = score_text(demo.executable, demo.program, windows, other).kl
    p[:, 5] = 1  # the limit of p ln p
    terms = p * (np.log(p) - own.logprobs)
    terms[:, 5] = 0
    assert found == pytest.approx(terms.sum(axis=1), rel=1e-4)


# ------------------------------------------------------------------------------------------------------- the command --


def test_eval_compares_modes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A table, JSON and a picture; the reference is in front and compared with nothing."""
    results, plot = tmp_path / "eval.json", tmp_path / "eval.svg"
    options = ["--modes", "fp32", "kv-fp32", "bf16", "--tokens", "300", "--limit", "12", "--kv-memory", "64MiB"]
    assert main(["eval", *options, "--json", str(results), "--plot", str(plot)]) == 0
    table = capsys.readouterr().out
    found = json.loads(results.read_text())
    assert [mode["name"] for mode in found["modes"]] == ["bf16", "fp32", "kv-fp32"]
    reference, fp32, kv = found["modes"]
    assert reference["paired"] is None and reference["kl"] is None
    assert fp32["weight_bytes"] == pytest.approx(2 * reference["weight_bytes"], rel=0.01)
    assert (fp32["kv_token_bytes"], kv["kv_token_bytes"]) == (2 * 3072, 2 * 3072)
    for mode in (fp32, kv):
        assert mode["name"] in table
        assert mode["paired"]["items"] == mode["items"] == 12
        assert 0 < mode["kl"] < 1e-4
        assert mode["top1"] > 0.98
        assert mode["perplexity"] == pytest.approx(reference["perplexity"], rel=1e-3)
        assert mode["tokens_per_s"] > 0
    assert found["positions"] == found["kept"] == 299
    assert ET.parse(plot).getroot().tag.endswith("svg")


def test_eval_takes_a_folder_items_and_a_text(capsys: pytest.CaptureFixture[str], tmp_path: Path, golden: Path) -> None:
    """Without items of its own a folder gets none; a reference may be another folder of the same tokenizer."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 8)
    (tmp_path / "items.jsonl").write_text('{"prompt": "The", "match": "exact", "expected": "?", "max_tokens": 3}\n')
    folder, text = str(golden / "qwen2_5"), str(tmp_path / "text.txt")
    options = ["--text", text, "--modes", "fp32", "--reference", "bf16", "--json", "-"]
    assert main(["eval", folder, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [mode["items"] for mode in found["modes"]] == [0, 0]
    assert found["modes"][1]["paired"] is None
    items = ["--items", str(tmp_path / "items.jsonl"), "--against", folder]
    assert main(["eval", folder, *options, *items]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [mode["items"] for mode in found["modes"]] == [1, 1]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--modes", "a16w8+a8w8"], 2, "is not a mode"),
        (["--modes", "w00t"], 2, "w00t"),
        (["--tokens", "1"], 2, "--tokens 1"),
        (["--limit", "-1"], 2, "--limit -1"),
        (["--items", "/nowhere"], 1, "/nowhere"),
        (["--text", "/dev/null"], 2, "less than two tokens"),
        (["/nowhere"], 1, "no such folder"),
    ],
)
def test_mistakes_are_one_line(args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As of every command."""
    assert main(["eval", "--tokens", "100", "--limit", "0", *args]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
