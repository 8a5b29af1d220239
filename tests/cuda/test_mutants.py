"""Broken kernels are noticed: each mutation of a source makes the kernel tests fail on the emulator.

Barriers removed, waits that wait for too little, guards dropped. A mutant that hangs, crashes or reads beyond its
memory ends a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_emulator import missing
from emulated_kernels import KERNELS

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-unknown-pragmas"]
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Mutant:
    """In `file` the `nth` place where `old` stands becomes `new`; `kernel` is the source to compile."""

    kernel: str
    tests: str
    chosen: str
    old: str
    new: str = ";"
    nth: int = 0
    file: str = ""

    def __str__(self) -> str:
        return f"{self.kernel}: {self.old} #{self.nth}"


ROWS, PRODUCTS = "test_kernels_emu.py", "test_kernels_emu_products.py"
ATTENTION, SAMPLE = "test_kernels_emu_attention.py", "test_kernels_emu_sample.py"
MUTANTS = [
    Mutant("norm", ROWS, "test_norm", BARRIER, file="reduce.cuh"),
    Mutant("norm", ROWS, "test_norm", BARRIER, nth=1, file="reduce.cuh"),
    Mutant("norm", ROWS, "test_norm", "if (row >= count(a.rows)) return;"),
    Mutant("norm", ROWS, "test_norm", "c + i < a.n ?", "true ?"),
    Mutant("embed", ROWS, "test_embed", "token >= e.vocab ? e.vocab - 1 : token", "token"),
    Mutant("embed", ROWS, "test_embed", "c < e.hidden", "true"),
    Mutant("heads", ROWS, "test_rope_kv", "__syncwarp();"),
    Mutant("heads", ROWS, "test_rope_kv", "__syncwarp();", nth=1),
    Mutant("heads", ROWS, "test_rope_kv", "__syncwarp();", nth=2),
    Mutant("heads", ROWS, "test_rope_kv", "if (slot < 0) return;"),
    Mutant("heads", ROWS, "test_kv_clear", "if (static_cast<int>(blockIdx.x) >= count(a.count)) return;"),
    Mutant("quantize", ROWS, "test_quantize", "i < n && !nothing", "!nothing"),
    Mutant("quantize", ROWS, "test_quantize", "(q + 128) >> 8", "q >> 8"),
    Mutant("linear_fma", PRODUCTS, "linear_fma", BARRIER),
    Mutant("linear_fma", PRODUCTS, "linear_fma", BARRIER, nth=1),
    Mutant("linear_fma", PRODUCTS, "linear_fma", BARRIER, nth=2),
    Mutant("linear_fma", PRODUCTS, "linear_fma", "row < rows.count ? rows.in(row) : -1", "rows.in(row)"),
    Mutant("linear_fma", PRODUCTS, "linear_fma", "n0 + row < a.N ? rows.expert * a.N + n0 + row : -1", "n0 + row"),
    Mutant("linear_gemv", PRODUCTS, "linear_gemv8", BARRIER),
    Mutant("linear_gemv", PRODUCTS, "linear_gemv8", BARRIER, nth=1),
    Mutant("linear_gemv", PRODUCTS, "linear_gemv8", "|| m >= rows.count", ""),
    Mutant("linear_skinny", PRODUCTS, "linear_skinny", BARRIER),
    Mutant("linear_skinny", PRODUCTS, "linear_skinny", "if (m >= rows.count) return;"),
    Mutant("linear_skinny", PRODUCTS, "linear_skinny", "g + 8 < rows.count ?", "true ?"),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", "cp_async_commit();", nth=1),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", BARRIER),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", BARRIER, nth=1),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", BARRIER, nth=2),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", "i < rows.count ? rows.in(i) : -1", "rows.in(i)"),
    Mutant("linear_mma", PRODUCTS, "linear_mma64", "i < rows.count * outputs", "i < 64 * outputs", file="epilogue.cuh"),
    Mutant("linear_codes_few", PRODUCTS, "linear_codes", BARRIER),
    Mutant("linear_codes_few", PRODUCTS, "linear_codes", BARRIER, nth=1),
    Mutant("linear_codes_few", PRODUCTS, "linear_codes", "sums[round & 1]", "sums[0]"),
    Mutant("linear_codes_few", PRODUCTS, "linear_codes", "if (m >= rows.count) return nullptr;"),
    Mutant("linear_codes_many", PRODUCTS, "linear_codes", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    Mutant("linear_codes_many", PRODUCTS, "linear_codes", BARRIER),
    Mutant("linear_codes_many", PRODUCTS, "linear_codes", BARRIER, nth=1),
    Mutant("linear_codes_many", PRODUCTS, "linear_codes", BARRIER, nth=2),
    Mutant(
        "linear_codes_many", PRODUCTS, "linear_codes", "const bool there = m < rows.count;", "const bool there = true;"
    ),
    Mutant("linear_codes_many", PRODUCTS, "linear_codes", "if (n >= columns) continue;"),
    Mutant("experts", PRODUCTS, "expert", BARRIER),
    Mutant("experts", PRODUCTS, "expert", BARRIER, nth=1),
    Mutant("experts", PRODUCTS, "expert", BARRIER, nth=2),
    *(Mutant("attention_fma", ATTENTION, "False", BARRIER, nth=nth) for nth in range(4)),
    Mutant("attention_fma", ATTENTION, "False", "if (at < end) {", "{"),
    *(Mutant("attention_mma", ATTENTION, "True", BARRIER, nth=nth) for nth in range(4)),
    Mutant("attention_mma", ATTENTION, "True", "cp_async_wait<0>();"),
    Mutant("attention_mma", ATTENTION, "True", "cp_async_wait<0>();", nth=1),
    Mutant("attention_mma", ATTENTION, "True", "at < end && c < a.kv.head_size", "c < a.kv.head_size"),
    Mutant("attention_mma", ATTENTION, "True", "at < end && c < a.kv.head_size", "at < end"),
    *(Mutant("sample", SAMPLE, "test_sample", BARRIER, nth=nth, file="sample_select.cuh") for nth in range(5)),
    # Between the others the order of two edits does not show: threads of the emulator do not meet within an edit.
    *(Mutant("sample", SAMPLE, "test_sample", BARRIER, nth=nth, file="sample_edit.cuh") for nth in (0, 3, 5)),
    *(Mutant("sample", SAMPLE, "test_sample", BARRIER, nth=nth, file="sample_report.cuh") for nth in range(4)),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    environment = {**os.environ, "CUDA_KERNEL_MUTANT": str(compiled(mutant, tmp_path))}
    environment.pop("DASHINFER_TEST_ALL", None)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", mutant.chosen]
    done = subprocess.run(
        [*command, str(HERE / mutant.tests)], env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert done.returncode not in (0, 5), f"{mutant} was not noticed:\n{done.stdout[-2000:]}"


def compiled(mutant: Mutant, folder: Path) -> Path:
    """The library of the mutated source."""
    sources = folder / "kernels"
    shutil.copytree(KERNELS, sources, ignore=shutil.ignore_patterns("host", "*.py", "__pycache__"))
    file = sources / (mutant.file or f"{mutant.kernel}.cu")
    parts = file.read_text().split(mutant.old)
    assert len(parts) > mutant.nth + 1, f"{mutant}: there is no such place"
    before, after = parts[: mutant.nth + 1], parts[mutant.nth + 1 :]
    file.write_text(mutant.old.join(before) + mutant.new + mutant.old.join(after))
    library = folder / "mutant.so"
    defines = ["-DDI_EMU", "-DDI_ARCH=800", f"-I{sources}", "-x", "c++"]
    done = subprocess.run(
        ["g++", *FLAGS, *defines, str(sources / f"{mutant.kernel}.cu"), "-o", str(library)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return library
