"""Small models for tests of the whole: the golden ones, on each device of this installation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite import LLM

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SMALL: dict[str, Any] = {"kv_memory": "16MiB", "max_context": 256, "max_batch": 4}


@pytest.fixture(params=["reference", "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """The devices that every installation has."""
    name: str = request.param
    if name == "cpu":
        pytest.importorskip("dashinfer_lite._native", reason="the package was not built")
    return name


@pytest.fixture
def make_llm(device: str) -> Iterator[Callable[..., LLM]]:
    """A maker of small models; what it made is closed at the end."""
    made: list[LLM] = []

    def make(name: str = "qwen2_5", **options: Any) -> LLM:
        made.append(LLM(GOLDEN / name, **{"device": device, **SMALL, **options}))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a fresh interpreter; it knows `GOLDEN` and `SMALL`."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        head = f"GOLDEN = {str(GOLDEN)!r}\nSMALL = {SMALL!r}\n"
        return subprocess.run(
            [sys.executable, "-P", "-c", head + code, *arguments],  # -P: not the checkout
            capture_output=True,
            text=True,
            timeout=100,
            # NumPy's own BLAS threads do not survive a fork in the middle of a product.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            check=False,
        )

    return run
