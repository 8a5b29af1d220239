"""A progress bar for long work, on terminals only."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from dashinfer_lite.cli.terminal import is_terminal, size

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

REFRESH_S = 0.1
WIDTH = 30


class ProgressBar:
    """Shows `label [####    ] 42 %` on the error stream and wipes it at the end; silent where nobody watches.

    Call it with (done, total); `amount` writes both, by default as bytes. It draws at most ten times a second. `label`
    may change in between.
    """

    def __init__(self, label: str, amount: Callable[[float], str] = size, stream: TextIO | None = None) -> None:
        self.label = label
        self._amount = amount
        self._stream = sys.stderr if stream is None else stream
        self._enabled = is_terminal(self._stream)
        self._drawn_at = 0.0
        self._is_shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._enabled or total <= 0 or (now - self._drawn_at < REFRESH_S and done < total):
            return
        self._drawn_at = now
        self._is_shown = True
        share = min(done / total, 1.0)
        bar = ("#" * round(share * WIDTH)).ljust(WIDTH)
        line = f"{self.label} [{bar}] {share:4.0%}  {self._amount(done)} of {self._amount(total)}"
        self._stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
