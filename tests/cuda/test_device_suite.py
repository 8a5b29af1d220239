"""The conformance suite of all devices, on the CUDA device of the emulator, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import missing

TESTS = Path(__file__).resolve().parents[1]
# Steps, refusals and what devices are asked on the way; single operations have tests of their own in this folder.
QUICK = ("test_step.py", "test_refusals.py", "test_op_quantized.py")


def run_suite(*paths: str) -> None:
    """`pytest --device cuda` on files of tests/devices."""
    if why := missing():
        pytest.skip(why)
    folders = [str(TESTS / "support"), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    files = [str(TESTS / "devices" / path) for path in paths]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "cuda_plugin", "--device", "cuda", *files]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_quick_part() -> None:
    run_suite(*QUICK)


@pytest.mark.slow
def test_all_of_it() -> None:
    run_suite("")
