"""Engines on the fake device, which answers at once, one step late, or two."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "devices"), str(TESTS / "engine")]

from fake_engine import build_engine  # noqa: E402

from dashinfer_lite.engine import Engine  # noqa: E402


@pytest.fixture(params=[0, 1, 2], ids=["prompt", "late-1", "late-2"])
def delay(request: pytest.FixtureRequest) -> int:
    """By how many steps the device's answers are late."""
    value: int = request.param
    return value


@pytest.fixture
def make_engine(delay: int) -> Iterator[Callable[..., Engine]]:
    """A maker of engines that are pumped by whoever waits; `engine.fake` is the device below."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        engine = build_engine(delay, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop()
