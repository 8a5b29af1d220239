# Copyright 2025 The DashInfer Lite authors. SPDX-License-Identifier: Apache-2.0
"""Scores a model with DashInfer Lite: greedy answers to eval/items.jsonl, perplexity of eval/heldout.txt.

    python score.py [--model FOLDER] [--dtype fp32 bf16] [--tasks retrieval]

All items run as one batch. Answers are judged by judge.py; the perplexity is that of evaluate.py: windows of N tokens, each scored by
itself without its first token, exp(mean negative log likelihood).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dashinfer_lite import LLM, SamplingParams

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from judge import judge  # noqa: E402

Item = dict[str, Any]


def load_items(tasks: str = "") -> list[Item]:
    """The held-out items whose task begins with `tasks`."""
    with (HERE / "eval/items.jsonl").open(encoding="utf-8") as file:
        return [item for line in file if (item := json.loads(line))["task"].startswith(tasks)]


def answer(llm: LLM, items: list[Item]) -> dict[str, str]:
    """Greedy answers by item id; all items are in the engine together."""
    requests = {}
    for item in items:
        params = SamplingParams(temperature=0, max_tokens=450 if item["match"] == "story" else 160)
        requests[item["id"]] = llm.submit(messages=item["messages"], tools=item.get("tools"), params=params)
    return {name: request.result().outputs[0].text for name, request in requests.items()}


def score(items: list[Item], answers: dict[str, str]) -> dict[str, tuple[int, int]]:
    """By task: how many answers are right, and of how many."""
    total = Counter(item["task"] for item in items)
    right = Counter(item["task"] for item in items if judge(item, answers[item["id"]]))
    return {task: (right[task], total[task]) for task in total}


def perplexity(llm: LLM, tokens: list[int], window: int) -> float:
    """exp of the mean negative log likelihood over windows, each without its first token."""
    windows = [tokens[i : i + window] for i in range(0, len(tokens), window)]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in llm.generate([w for w in windows if len(w) > 1], params):
        for token, entry in zip(output.prompt_token_ids, output.prompt_logprobs or [], strict=True):
            if entry is not None:
                total -= entry[token].logprob
                count += 1
    return math.exp(total / count)


def main() -> None:
    """Score and compare with the stored reference scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded demo model")
    parser.add_argument("--dtype", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--tasks", default="", help="only tasks that begin with this")
    parser.add_argument("--windows", type=int, nargs="*", default=[512, 1024, 2048])
    args = parser.parse_args()
    items = load_items(args.tasks)
    text = (HERE / "eval/heldout.txt").read_text(encoding="utf-8")
    reference = json.loads((HERE / "eval/scores.json").read_text())
    for dtype in args.dtype:
        stored = reference[{"fp32": "float32"}.get(dtype, "bfloat16")]
        with LLM(args.model, dtype=dtype) as llm:
            scores = score(items, answer(llm, items))
            for task, (right, total) in scores.items():
                print(f"{dtype} {task:<18} {right:>3} of {total:<3} reference {stored['tasks'][task]['right']}")
            tokens = llm.tokenizer.encode(text, add_special_tokens=False)
            for window in args.windows:
                known = next((p["perplexity"] for p in stored["perplexity"] if p["window"] == window), None)
                print(f"{dtype} perplexity, windows of {window}: {perplexity(llm, tokens, window):.4f}, reference {known}")
        right, total = (sum(column) for column in zip(*scores.values(), strict=True))
        print(f"{dtype} {right} of {total} right ({right / total:.1%})")


if __name__ == "__main__":
    main()
