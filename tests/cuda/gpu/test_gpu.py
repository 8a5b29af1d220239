"""On a real GPU what the emulator showed: whole models, the device suite, the self-test, graphs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import is_emulated
from large_product import EPILOGUES, TYPES, product
from safetensors.numpy import load_file
from stepping import Loop, load

from dashinfer_lite.graph.program import Limits

TESTS = Path(__file__).resolve().parents[2]
GOLDEN = TESTS / "golden"
NEW_TOKENS = 48
PROMPTS = ("p0", "p1", "p2")
MODELS = ("llama2", "llama3_2", "mistral", "qwen1_5", "qwen2_5", "qwen3")


def generate(gpu: Any, name: str, dtype: Any) -> tuple[dict[str, np.ndarray], list[Any]]:
    expected = load_file(GOLDEN / name / "golden.safetensors")
    limits = Limits(max_tokens=128, tail_rows=16, max_seqs=4)
    executable, program = load(GOLDEN / name, gpu, dtype=dtype, kv_dtype=dtype, limits=limits)
    prompts = [expected[f"{prompt}.input_ids"].tolist() for prompt in PROMPTS]
    sequences = Loop(executable, program).generate(prompts, NEW_TOKENS)
    executable.close()
    return expected, sequences


@pytest.mark.parametrize("name", MODELS)
def test_fp32(gpu: Any, name: str) -> None:
    """Logits within 1e-3, and every token."""
    expected, sequences = generate(gpu, name, "f32")
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        rows = expected[f"{prompt}.logits_positions"]
        got = np.stack([sequence.logits[row] for row in rows])
        assert np.abs(got - expected[f"{prompt}.logits"]).max() <= 1e-3, prompt
        assert sequence.drawn == expected[f"{prompt}.greedy_ids"].tolist(), prompt


@pytest.mark.parametrize("name", MODELS)
def test_16_bit(gpu: Any, name: str) -> None:
    """The CPU's rule: twice the reference's own rms error, and tokens up to the first uncertain step."""
    budget = json.loads((GOLDEN / name / "golden.json").read_text())["low_precision_reference_error"]
    expected, sequences = generate(gpu, name, "bf16")
    errors = []
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        rows = expected[f"{prompt}.logits_positions"]
        errors.append((np.stack([sequence.logits[row] for row in rows]) - expected[f"{prompt}.logits"]).ravel())
        unsure = np.flatnonzero(expected[f"{prompt}.greedy_margin"] < 4 * budget["rms"])
        sure = int(unsure[0]) if len(unsure) else NEW_TOKENS
        assert sequence.drawn[:sure] == expected[f"{prompt}.greedy_ids"].tolist()[:sure], prompt
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) <= 2 * budget["rms"]


@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: "-".join(map(str, e)) or "plain")
def test_products_of_many_rows(gpu: Any, types: tuple[str, str, str], epilogue: dict[str, Any]) -> None:
    """Through cuBLASLt where it is found: tiles, and rows and columns that fill none."""
    x_type, w_type, out = types
    if out != "f32" and epilogue.get("residual") == "in place":
        pytest.skip("residuals are fp32")
    for rows, n, k in ((256, 512, 512), (100, 128, 160)):
        assert product(gpu, rows, n, k, x_type, w_type, out=out, **epilogue) <= 1


def test_the_device_suite(gpu: Any) -> None:
    """`pytest tests/devices --device cuda`."""
    if is_emulated(gpu):
        pytest.skip("test_device_suite.py does that")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--device", "cuda", str(TESTS / "devices")]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


def test_the_self_test(gpu: Any) -> None:
    """`python -m dashinfer_cuda` finds no difference."""
    if is_emulated(gpu):
        pytest.skip("the plugin's stand-in is this process's alone")
    done = subprocess.run([sys.executable, "-P", "-m", "dashinfer_cuda"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
