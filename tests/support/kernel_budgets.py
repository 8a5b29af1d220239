"""What the assembler says of each CUDA kernel. Run it to write `cuda_kernels/kernels.json`.

Compiled kernels are kept in the system's temporary folder by the hash of their sources.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


def _compiler_module() -> Any:
    """cuda_kernels/compile.py, without the checkout on the path: tests run against what is installed."""
    spec = importlib.util.spec_from_file_location("cuda_kernels_compile", ROOT / "cuda_kernels" / "compile.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


kernels = _compiler_module()
BUDGETS = ROOT / "cuda_kernels" / "kernels.json"
STORE = Path(tempfile.gettempdir()) / f"dashinfer-cubins-{os.getuid()}"
STEP = 8  # registers are given out in eights


class Use(NamedTuple):
    """Of one kernel on one architecture; bytes a block, bytes a thread."""

    registers: int
    shared: int
    stack: int
    spilled: int


def measure(sources: Sequence[str], architecture: str) -> dict[str, Use]:
    """The kernels of some files."""
    compiler = kernels.find_compiler("require")
    assert compiler is not None
    STORE.mkdir(mode=0o700, exist_ok=True)
    found: dict[str, Use] = {}
    for name in sources:
        cubin = kernels._compile_one((compiler, ROOT / "cuda_kernels" / f"{name}.cu", architecture, STORE))
        found.update(parse(cubin.with_suffix(".log").read_text()))
    return found


def parse(log: str) -> dict[str, Use]:
    """Reads the assembler's log."""
    found = {}
    for entry in log.split("Compiling entry function '")[1:]:

        def number(pattern: str, entry: str = entry) -> int:
            match = re.search(pattern, entry)
            return int(match[1]) if match else 0

        found[entry.split("'")[0]] = Use(
            number(r"Used (\d+) registers"),
            number(r"(\d+) bytes smem"),
            number(r"(\d+) bytes stack frame"),
            number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )
    return found


def sources() -> list[str]:
    """The names of all kernel files."""
    return sorted(path.stem for path in (ROOT / "cuda_kernels").glob("*.cu"))


def budgets() -> dict[str, dict[str, list[int]]]:
    """Kernel → architecture → [registers, static shared memory]."""
    found: dict[str, dict[str, list[int]]] = json.loads(BUDGETS.read_text())
    return found


def write() -> None:
    """Writes what is used now, registers rounded up, as the budgets."""
    table: dict[str, dict[str, list[int]]] = {}
    for architecture in kernels.ARCHITECTURES:
        for kernel, use in measure(sources(), architecture).items():
            table.setdefault(kernel, {})[architecture] = [-(-use.registers // STEP) * STEP, use.shared]
    lines = [f" {json.dumps(kernel)}: {json.dumps(table[kernel])}" for kernel in sorted(table)]
    BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
