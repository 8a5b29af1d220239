"""Each example program runs to its end with the demo model and shows what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 120  # only a hang reaches it

PROMISED = {
    "01_generate.py": ["Once upon a time → ", "rank 1", "[1000, 1001, 1002] → "],
    "02_stream.py": ["[stop, stop string '.\\n", "[cancelled after "],
    "03_chat.py": ["model: 17 + 25 = 42", "prompt tokens came from the cache]", "'14 + 14 = 28'"],
    "04_async.py": ["fox:", "bear:", "rabbit:", "left after 10 pieces"],
    "05_pump.py": ["fox: 10, bear: 10, rabbit: 5", "[finished, "],
    "06_devices.py": ["cpu        usable", "the same tokens"],
    "07_guided.py": ["choice: yes", "schema: ['city', 'people']", 'get_weather({"city": "Lima"})'],
    "08_server.py": ["17 + 25 = 42", "[tiny_chat at http://127.0.0.1:"],
}


def test_every_example_is_run() -> None:
    """A new example gets its line above, and one in the list of examples/README.md."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(PROMISED)
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name})" in listed for name in names)


@pytest.mark.parametrize("name", PROMISED)
def test_example(name: str) -> None:
    """As a user runs it, from any folder."""
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in PROMISED[name]:
        assert text in done.stdout, done.stdout


@pytest.mark.parametrize("name", PROMISED)
def test_examples_stay_small(name: str) -> None:
    """A page at most."""
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60
