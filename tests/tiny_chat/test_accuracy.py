"""The demo model answers as transformers answers with it: the same texts, task scores and perplexity."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dashinfer_lite import LLM

RECIPE = Path(__file__).resolve().parents[2] / "examples/tiny_chat"

# Mean negative log likelihood of the first 4096 tokens of heldout.txt in windows of 512, by evaluate.py's formula with
# transformers 5.23 and torch 2.13: 0.400136 in fp32, 0.400266 in bf16.
REFERENCE_NLL = 0.400136
# Ours keep more in fp32 than torch's bf16 does, so they lie closer to fp32 than its 1.3e-4.
NLL_NOISE = {"fp32": 2e-6, "bf16": 1e-4}
# Greedy answers may part where two tokens are all but equally likely; bf16 rounds more of them together.
SAME_ANSWERS = {"fp32": 1.0, "bf16": 0.97}


@pytest.fixture(scope="module")
def score() -> ModuleType:
    """The example program score.py."""
    spec = importlib.util.spec_from_file_location("tiny_chat_score", RECIPE / "score.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """Item id → what transformers answers in fp32."""
    lines = (RECIPE / "eval/answers_float32.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry["answer"] for entry in map(json.loads, lines)}


def check_answers(score: ModuleType, reference: dict[str, str], items: list[dict[str, Any]], dtype: str) -> None:
    """Answer the items; the texts are the reference's, and so is each task's score up to one answer."""
    with LLM(dtype=dtype) as llm:
        answers = score.answer(llm, items)
    same = sum(answers[name] == reference[name] for name in answers)
    assert same >= SAME_ANSWERS[dtype] * len(items), [name for name in answers if answers[name] != reference[name]]
    expected = score.score(items, reference)
    for task, (right, total) in score.score(items, answers).items():
        assert abs(right - expected[task][0]) <= 1, (
            f"{task}: {right} of {total} right, the reference has {expected[task]}"
        )


@pytest.mark.parametrize(("dtype", "every"), [("bf16", 4), ("fp32", 16)])
def test_answers(score: ModuleType, reference: dict[str, str], dtype: str, every: int) -> None:
    """Every so-manieth item of each task, all in one batch."""
    check_answers(score, reference, score.load_items()[::every], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_all_answers(score: ModuleType, reference: dict[str, str], dtype: str) -> None:
    """All 505 items."""
    check_answers(score, reference, score.load_items(), dtype)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_perplexity(score: ModuleType, dtype: str) -> None:
    """Held-out text is as likely as it is to the reference."""
    text = (RECIPE / "eval/heldout.txt").read_text(encoding="utf-8")
    with LLM(dtype=dtype) as llm:
        tokens = llm.tokenizer.encode(text, add_special_tokens=False)[:4096]
        assert len(tokens) == 4096
        nll = math.log(score.perplexity(llm, tokens, 512))
    assert nll == pytest.approx(REFERENCE_NLL, abs=NLL_NOISE[dtype])


def test_the_stored_scores_are_those_of_the_stored_answers(score: ModuleType, reference: dict[str, str]) -> None:
    """scores.json, the answers, the items and the judge belong together."""
    stored = json.loads((RECIPE / "eval/scores.json").read_text())["float32"]["tasks"]
    scores = score.score(score.load_items(), reference)
    assert scores == {task: (entry["right"], entry["items"]) for task, entry in stored.items()}
