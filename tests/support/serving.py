"""`dashinfer-lite serve` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from waiting import WAIT_S


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of a server over the demo model, which has to end cleanly."""
    command = [sys.executable, "-P", "-m", "dashinfer_lite.cli", "serve", "--port", "0", "--threads", "2", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as server:
        try:
            assert server.stdout is not None
            yield next(line.split()[1] for line in server.stdout if line.startswith("  page"))
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0
