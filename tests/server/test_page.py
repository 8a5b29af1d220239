"""The chat page as a person uses it: Debian's Chromium without a window, the demo model behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

for extra in ("starlette", "uvicorn", "msgspec", "prometheus_client", "llguidance"):
    pytest.importorskip(extra, reason="needs the extra server")

from devtools import Browser, find_chromium  # noqa: E402 — after what may be missing

WAIT_S = 100  # only a hang reaches it
STORY = "Tell me a story about a fox."
LAST = "document.querySelector('.turn.model:last-child')"
IS_DONE = f"{LAST}?.dataset.state === 'done'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; each has a tab with storage of its own."""
    path = find_chromium()
    if path is None:
        pytest.skip("needs chromium (apt install chromium)")
    with Browser(path, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demo model, served by the program."""
    yield from serve("--max-batch", "8", "--max-waiting", "64")


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    """The same with a key."""
    yield from serve("--api-key", "open sesame")


def serve(*options: str) -> Iterator[str]:
    """The address of a server that ends with the test, cleanly."""
    command = [sys.executable, "-m", "dashinfer_lite.cli", "serve", "--port", "0", "--threads", "2", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as server:
        assert server.stdout is not None
        try:
            (address,) = [line.split()[1] for line in iter(server.stdout.readline, "") if line.startswith("  page")][:1]
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0
