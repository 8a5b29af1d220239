"""Figures as JSON lines: each line says what was measured, where, with which code, and when."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dashinfer_lite import _native

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

MOST_CONTENTION = 0.05  # as in `dashinfer-lite bench`


@dataclass(slots=True)
class Recorder:
    """Appends lines to a file, or keeps quiet without one; `common` stands in each of them."""

    path: Path | None
    common: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        name: str,
        unit: str,
        samples: Sequence[float],
        contention: float | None = None,
        **more: float | str | None,
    ) -> None:
        """One figure: the samples' median, whether others left it alone, and whatever else belongs to it."""
        if self.path is None:
            return
        is_valid = contention is None or contention <= MOST_CONTENTION
        line = {"name": name, "value": median(samples), "unit": unit, "samples": list(samples), **more}
        line |= {"contention": contention, "valid": is_valid} | self.common
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line a figure to this file")


def recorder(path: Path | None, bench: str, **common: object) -> Recorder:
    """A recorder for the runs of this process: machine, commit and date are the same in all of its lines."""
    return Recorder(path, {"bench": bench, **common} | origin() if path else {})


def origin() -> dict[str, object]:
    """The processor and its cores, the commit of this checkout ("+": with changes), and the time."""
    cpu = _native.cpu()
    return {
        "machine": f"{cpu.get('model') or cpu.get('vendor', 'unknown')}, {os.cpu_count()} processors",
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", "-C", here, *words], check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
