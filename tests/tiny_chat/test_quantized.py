"""What every quantization mode costs the demo model: right answers, paired item by item, and divergence from 16 bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dashinfer_lite.cli.eval_data import built_in, parse_items
from dashinfer_lite.cli.eval_mode import Mode
from dashinfer_lite.cli.eval_result import HEADER, Line
from dashinfer_lite.cli.eval_run import Run, Work, run_mode
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.loading import Options

RECIPE = Path(__file__).resolve().parents[2] / "examples/tiny_chat"
ALL = bool(os.environ.get("DASHINFER_TEST_ALL"))


class Cost(NamedTuple):
    """The most that a mode may cost: right answers in percentage points, KL in nats a token, and top-1 tokens.

    Bits are the same on every tier and for every number of threads, so the bounds stand close to what was measured.
    """

    points: float
    kl: float
    top1: float


COSTS = {
    "a16w8": Cost(1.0, 5e-5, 0.98),
    "a8w8": Cost(1.0, 1.5e-4, 0.975),
    "a16w4-g128": Cost(3.0, 0.005, 0.93),
    "kv-int8": Cost(1.0, 2e-5, 0.99),
    "a16w4-g128+kv-uint4": Cost(4.0, 0.007, 0.92),
}
MORE_COSTS = {
    "a16w4": Cost(4.0, 0.006, 0.92),
    "kv-uint4": Cost(2.0, 0.0015, 0.965),
    "a16w8-g128": Cost(1.0, 5e-5, 0.98),
    "a8w8-g128": Cost(1.0, 1e-4, 0.98),
    "a16w4-g32": Cost(3.0, 0.003, 0.93),
    "a16w4-g64": Cost(3.0, 0.004, 0.93),
    "a16w4-g128+head-bf16": Cost(3.0, 0.005, 0.93),
    "head-int8": Cost(1.0, 4e-5, 0.985),
    "a16w8+kv-int8": Cost(1.0, 6e-5, 0.98),
    "a16w4-g128+kv-int8": Cost(3.0, 0.005, 0.93),
}
INDISTINGUISHABLE = {"a16w8", "a16w8-g128", "a8w8", "a8w8-g128", "head-int8", "kv-int8", "a16w8+kv-int8"}


@pytest.fixture(scope="module")
def work() -> Work:
    """All 505 items and 8192 tokens in the full matrix, else every fourth and 2048."""
    items = parse_items((RECIPE / "eval/items.jsonl").read_text(encoding="utf-8"), "items.jsonl")
    text = (RECIPE / "eval/heldout.txt").read_text(encoding="utf-8")
    names = frozenset(built_in("names.txt").split())
    return Work(text, 8192 if ALL else 2048, 512, items if ALL else items[::4], names)


def run(name: str, work: Work, reference: Run | None) -> Run:
    """One mode of the demo model."""
    return run_mode(None, Mode.parse(name), Options(), work, reference, lambda part, done, total: None)


@pytest.fixture(scope="module")
def reference(work: Work) -> Run:
    """The 16-bit run."""
    return run("bf16", work, None)


@pytest.fixture(scope="module")
def lines() -> Iterator[list[Line]]:
    """The lines of all modes; they are printed as a table at the end (pytest -s)."""
    lines: list[Line] = []
    yield lines
    print("\n" + table(HEADER, [line.cells() for line in lines]))


@pytest.mark.parametrize("name", COSTS)
def test_accuracy(name: str, work: Work, reference: Run, lines: list[Line]) -> None:
    """A mode costs no more than it is known to."""
    lines.append(check(name, COSTS[name], work, reference))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_COSTS)
def test_accuracy_of_more_modes(name: str, work: Work, reference: Run, lines: list[Line]) -> None:
    """Further groups and combinations."""
    lines.append(check(name, MORE_COSTS[name], work, reference))


def check(name: str, cost: Cost, work: Work, reference: Run) -> Line:
    """Run a mode and compare it; 8 bits must not be told from 16 by any item."""
    line = Line.of(run(name, work, reference), work.items, reference)
    assert line.paired is not None and line.kl is not None and line.top1 is not None
    assert line.paired.difference >= -cost.points / 100, line.cells()
    assert line.kl <= cost.kl, line.cells()
    assert line.top1 >= cost.top1, line.cells()
    if name in INDISTINGUISHABLE:
        assert line.paired.low < 0 < line.paired.high, line.cells()
    return line
