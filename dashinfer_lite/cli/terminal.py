"""What a person sees: colours where they are welcome, sizes, times, tables."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence


class Style:
    """Colours of one stream: plain text unless it is a terminal; NO_COLOR (https://no-color.org) turns them off."""

    def __init__(self, stream: TextIO) -> None:
        self.enabled = is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def bold(self, text: str) -> str:
        return self._paint(text, 1)

    def dim(self, text: str) -> str:
        return self._paint(text, 2)

    def good(self, text: str) -> str:
        return self._paint(text, 32)

    def bad(self, text: str) -> str:
        return self._paint(text, 31)

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled and text else text


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at the stream; a closed one is nobody's."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def tolerate_encoding() -> None:
    """Let a terminal that lacks a character show "?" in its place rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of aligned columns; the first `left` columns are flush left, numbers after them flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def size(nbytes: float) -> str:
    """Bytes as a person reads them: "11.0 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def seconds(value: float) -> str:
    """A duration as a person reads it: "12.3 ms", "1.25 s"."""
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.2f} s"
