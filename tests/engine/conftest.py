"""Engines on the fake device, which answers at once, one step late, or two."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "devices"), str(TESTS / "engine")]

from fake import EOS, FakeExecutable, fake_program  # noqa: E402
from fake_codec import FakeCodec  # noqa: E402
from late import LateExecutable  # noqa: E402

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

    def make(*, failing: tuple[int, ...] = (), program: dict[str, Any] | None = None, **options: Any) -> Engine:
        engine = build_engine(delay, failing, program or {}, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop()


def build_engine(delay: int, failing: tuple[int, ...], program_options: dict[str, Any], **options: Any) -> Engine:
    program = fake_program(**program_options)
    fake = FakeExecutable(program, failing)
    executable = LateExecutable(fake, delay, program.kv.block_tokens) if delay else fake
    engine = Engine(executable, program, FakeCodec(), eos_token_ids=[EOS], **options)
    engine.fake = fake  # type: ignore[attr-defined]
    return engine
