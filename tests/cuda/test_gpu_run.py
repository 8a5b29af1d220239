"""The script for a machine with a GPU goes through all its parts: here on the emulator, which it is asked to take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import missing

SCRIPT = Path(__file__).with_name("gpu") / "run.py"
SANITIZER = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift 2; done
"$@" && echo "========= ERROR SUMMARY: 0 errors"
"""


@pytest.mark.slow
def test_every_part(tmp_path: Path) -> None:
    """It builds, looks, tests, checks and measures; nothing fails, and all is in the JSON."""
    if why := missing():
        pytest.skip(why)
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    out = tmp_path / "results" / "found.json"
    environment = os.environ | {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-P", str(SCRIPT), str(out), "--emulated"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = json.loads(out.read_text())
    assert done.returncode == 0, json.dumps(found, indent=1)[-4000:]
    parts = found["parts"]
    assert found["emulated"] and list(parts) == ["build", "device", "suite", "sanitizer", "bench"]
    lines = "\n".join(parts["device"]["output"])
    assert "cublaslt" in lines and "version 12.9.1" in lines and "writes the same tokens as on the CPU" in lines
    assert "passed" in "\n".join(parts["suite"]["output"]) and "failed" not in "\n".join(parts["suite"]["output"])
    for check in ("memcheck", "racecheck"):
        assert parts["sanitizer"][check] == ["========= ERROR SUMMARY: 0 errors"]
    bench = parts["bench"]
    assert {"products", "codes", "attention", "drawing", "decode", "models"} <= bench.keys() and "emulated" in bench[
        "device"
    ]
    assert all(row["us"] > 0 for name in ("products", "codes", "attention", "drawing", "models") for row in bench[name])
