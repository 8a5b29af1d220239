"""Real clients against a real socket, each in a process of its own. `make test-clients` runs more of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).resolve().parent / "clients"


def test_openai(make_app: Callable[..., Any], serve_app: Callable[..., str]) -> None:
    """OpenAI's Python package: chats, tools, structures, completions, embeddings, responses, errors."""
    if importlib.util.find_spec("openai") is None:
        pytest.skip("needs openai")
    url = serve_app(make_app())
    command = [sys.executable, "-P", str(CLIENTS / "openai_client.py"), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(": done\n")
