"""A small model with everything that a pass can touch, and what it computes without any pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, Weights, run, transformer

from dashinfer_lite.graph.program import Program

Compute = Callable[..., tuple[np.ndarray, Program]]


@pytest.fixture(scope="session")
def compute() -> Compute:
    """compute(passes, **options) → (logits [T,V] of a fixed batch, the program)."""
    weights = Weights()

    def compute(passes: Any, model: Any = transformer, **options: Any) -> tuple[np.ndarray, Program]:
        return run(model, CONFIG, weights, passes, **options)

    return compute


@pytest.fixture(scope="session")
def plain(compute: Compute) -> np.ndarray:
    """The logits without any pass."""
    return compute(())[0]
