"""The native rope table, compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dashinfer_lite.graph.rope_frequencies import RopeFrequencies

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-O2", "-std=c++17", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
CELL = 32
UNTOUCHED = 777.0


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    """Where an array's data lies; null for None."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def native_table(
    library: ctypes.CDLL,
    freqs: RopeFrequencies,
    positions: np.ndarray,
    prompt_len: np.ndarray,
    sections: Sequence[int] = (0, 0, 0),
    interleaved: bool = False,
    span: tuple[int, int] | None = None,
    logn: int = 0,
) -> np.ndarray:
    """Returns the activation as plain rows [T, cols]; rows outside `span` are UNTOUCHED."""
    rows, tokens = positions.shape
    half = len(freqs.inv_freq)
    cols = -(-2 * half // CELL) * CELL
    band = min(tokens, CELL)
    cells = np.full((-(-tokens // band), cols // CELL, band, CELL), UNTOUCHED, np.float32)
    positions = np.ascontiguousarray(positions, np.int32)
    prompts = np.ascontiguousarray(prompt_len, np.int32)
    three = np.zeros(3, np.int32)
    three[: len(sections)] = sections
    factors = np.array([freqs.attention_factor, freqs.factor, freqs.theta], np.float32)
    library.rope(
        *(address(cells), tokens, cols),
        *(address(freqs.inv_freq), address(freqs.long_inv_freq), int(freqs.kind), half, freqs.original_max),
        *(address(three), int(interleaved), address(factors)),
        *(address(positions), rows, tokens, address(prompts), logn, *(span or (0, tokens))),
    )
    return cells.transpose(0, 2, 1, 3).reshape(-1, cols)[:tokens]


@pytest.fixture(scope="session")
def native_rope(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """The native table as a function, or a skip where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the rope table with")
    path = tmp_path_factory.mktemp("rope") / "librope.so"
    sources = [ROOT / "tests" / "rope" / "rope_library.cpp", ROOT / "cpu_kernels" / "runtime" / "rope_table.cpp"]
    subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    return lambda *arguments, **options: native_table(library, *arguments, **options)
