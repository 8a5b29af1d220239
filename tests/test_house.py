"""The house keeps its shape: layering, file sizes, no prints, no foreign frameworks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
PACKAGE = HOUSE / "dashinfer_lite"

# A room may import itself, the rooms below it, and the leaves. `llm` stands for the top-level modules.
ALLOWED = {
    "cli": {"server", "llm", "engine", "graph", "weights", "devices", "text", "model_defs", "native"},
    "server": {"llm", "engine", "tools"},
    "llm": {"llm", "engine", "graph", "weights", "devices", "text", "grammar", "tools", "model_defs", "native"},
    "engine": {"graph", "weights", "devices"},
    "devices": {"graph", "weights", "native"},
    "weights": set(),
    "graph": {"weights"},
    "text": set(),
    "grammar": set(),
    "tools": {"grammar"},
    "model_defs": {"graph"},
}
LEAVES = {"errors", "guided", "sampling_params", "outputs"}


def _sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(HOUSE / "model_defs").rglob("*.py")])


def _room(path: Path) -> str:
    if path.is_relative_to(HOUSE / "model_defs"):
        return "model_defs"
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "llm"


def _imports(path: Path) -> set[str]:
    """Names of rooms (or leaves) that a file imports at run time, wherever in the file."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dashinfer_lite" and len(parts) > 1:
                found.add("native" if parts[1] == "_native" else parts[1])
    return found


IMPORTS = {path: _imports(path) for path in _sources()}  # Python 3.11 cannot parse in two threads at once


@pytest.mark.parametrize("path", IMPORTS, ids=lambda p: str(p.relative_to(HOUSE)))
def test_layering(path: Path) -> None:
    """cli → server → llm → engine → graph, weights, devices → _native; model_defs and text stand apart."""
    room = _room(path)
    rooms = set(ALLOWED)
    for target in IMPORTS[path]:
        if target in LEAVES or target == room:
            continue
        if target not in rooms | {"native"}:
            target = "llm"
        if room == "llm" and target == "llm":
            continue
        assert target in ALLOWED[room], f"{path.relative_to(HOUSE)} ({room}) must not import {target}"


def test_no_foreign_frameworks_and_no_prints() -> None:
    """The product imports no torch and no transformers, and only the command line prints."""
    for path in _sources():
        text = path.read_text()
        assert not re.search(r"^\s*(import|from)\s+(torch|transformers)\b", text, re.M), path
        if _room(path) != "cli":
            calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            assert not any(call.func.id == "print" for call in calls), path  # type: ignore[union-attr]


def test_files_stay_short() -> None:
    """One idea a file: a long file is two."""
    caps = {".py": 400, ".h": 600, ".cpp": 600, ".pyx": 600}
    files = [
        *_sources(),
        *(HOUSE / "cpu_kernels").rglob("*.h"),
        *(HOUSE / "cpu_kernels").rglob("*.cpp"),
        PACKAGE / "_native.pyx",
    ]
    long = {str(p.relative_to(HOUSE)): n for p in files if (n := len(p.read_text().splitlines())) > caps[p.suffix]}
    assert not long
    models = {p.name: n for p in (HOUSE / "model_defs").glob("*.py") if (n := len(p.read_text().splitlines())) > 120}
    assert not models


def test_every_room_says_how_to_add_to_it() -> None:
    """A newcomer finds a README where things are added."""
    for room in (
        "cpu_kernels",
        "model_defs",
        "dashinfer_lite/graph",
        "dashinfer_lite/engine",
        "dashinfer_lite/devices",
        "dashinfer_lite/text",
        "dashinfer_lite/grammar",
        "dashinfer_lite/tools",
        "dashinfer_lite/server",
        "tests",
    ):
        assert (HOUSE / room / "README.md").is_file(), room
