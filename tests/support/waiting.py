"""Waiting for what must come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashinfer_lite import LLM

WAIT_S = 200  # only a mistake takes so long


def is_idle(llm: LLM) -> bool:
    """Whether nothing is computed, waits, or holds a block."""
    engine = llm.engine.metrics()
    return not (engine["running"] or engine["waiting"] or engine["kv_blocks_used"])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)
