"""Broken sources are noticed: each mutation makes tests fail on the emulator.

Barriers removed, waits that wait for too little, guards dropped. A mutant that hangs, crashes or reads beyond its
memory ends a process of its own. Sources as they are pass the same tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cuda_emulator import HEADERS, missing
from emulated_kernels import KERNELS

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-unknown-pragmas"]
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Mutant:
    """In `file` the `nth` place where `old` stands becomes `new`.

    `kernel` is the source to compile, "host" the host library; `tests` are the file and `chosen` the part of it that
    must notice.
    """

    kernel: str
    tests: str
    chosen: str
    old: str
    new: str = ";"
    nth: int = 0
    file: str = ""
    is_quick: bool = False  # part of the short run

    def __str__(self) -> str:
        return f"{self.kernel}: {self.old} #{self.nth}"


ROWS, PRODUCTS = "test_kernels_emu.py", "test_kernels_emu_products.py"
ATTENTION, SAMPLE = "test_kernels_emu_attention.py", "test_kernels_emu_sample.py"
HOST, CUBLASLT = "test_host.py", "test_cublaslt.py"
LARGE = "not model and not versions and not none and not serve"
MUTANTS = [
    Mutant("norm", ROWS, "test_norm", BARRIER, file="reduce.cuh", is_quick=True),
    Mutant("norm", ROWS, "test_norm", BARRIER, nth=1, file="reduce.cuh"),
    Mutant("norm", ROWS, "test_norm", "if (row >= count(a.rows)) return;"),
    Mutant("norm", ROWS, "test_norm", "c + i < a.n ?", "true ?"),
    Mutant("embed", ROWS, "test_embed", "token >= e.vocab ? e.vocab - 1 : token", "token"),
    Mutant("embed", ROWS, "test_embed", "c < e.hidden", "true", is_quick=True),
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
    Mutant("linear_gemv", PRODUCTS, "linear_gemv8", "if (m >= rows.count) break;"),
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
    *(
        Mutant("sample", SAMPLE, "test_sample or forbidden", BARRIER, nth=nth, file="sample_edit.cuh")
        for nth in (0, 3, 5)
    ),
    *(Mutant("sample", SAMPLE, "test_sample", BARRIER, nth=nth, file="sample_report.cuh") for nth in range(4)),
    *(
        Mutant("host", HOST, "swap", old, new, file="host/step.cpp")
        for old, new in (
            ("if (!result) result = d.cuStreamWaitEvent(stream_, order_, 0);", ""),
            ("if (!result) result = d.cuEventRecord(order_, copy_stream_);", ""),
            ("(host(at), block(at), size, copy_stream_)", "(host(at), block(at), size, stream_)"),
            ('return d.check(result, why, "copying KV blocks");', "return DI_OK;"),
            ("for (int i = 0; i < step.n_swap_in; ++i) touch(step.swap_in[2 * i]);", ""),
            ("if (const int bad = swap(step, why)) return bad;", ""),
        )
    ),
    # Without its guards nothing shows: rows beyond the step exist, and nobody reads them.
    Mutant("linear_large", CUBLASLT, LARGE, "a.first + blockIdx.x", "blockIdx.x", nth=1),
    Mutant("linear_large", CUBLASLT, LARGE, "total[n + 16]", "total[n + 1]"),
    *(
        Mutant("host", CUBLASLT, LARGE, old, new, file="host/large_products.cpp")
        for old, new in (
            # leading dimensions
            ("p.x_stride = a.x.stride;", "p.x_stride = a.K;"),
            ("shape.direct ? a.e.out.stride : a.N", "a.N"),
            ("p.plus_stride = a.e.residual.stride;", "p.plus_stride = a.N;"),
            ("p.w_stride = a.w_stride;", "p.w_stride = a.w_stride + 8;"),
            ("    p.x_stride = a.K;", ""),
            # layouts, and what is transposed
            ("type, K, N, p.w_stride", "type, N, K, p.w_stride"),
            ("out_type, N, M, p.out_stride", "out_type, M, N, p.out_stride"),
            ("transposed = kBlasTransposed", "transposed = 0"),
            ("p.w, found.layouts[0], p.x, found.layouts[1]", "p.x, found.layouts[1], p.w, found.layouts[0]"),
            # types, of operands and of sums
            ("p.out_type = shape.direct ? a.e.out.dtype : F32;", "p.out_type = F32;"),
            ("kBlasComputeF32, kBlasF32", "kBlasComputeF32, kBlasF16"),
            ("kBlasComputeF32, kBlasF32", "77, kBlasF32"),
            # workspace and stream
            ("kBlasMaxWorkspace, &workspace, sizeof workspace", "kBlasMaxWorkspace, &workspace, 4"),
            ("const uint64_t workspace = workspace_.bytes();", "const uint64_t workspace = 0;"),
            ("reinterpret_cast<void*>(workspace_.at())", "nullptr"),
            ("found.best.workspace, stream", "0, stream"),
            ("found.best.workspace, stream", "found.best.workspace, nullptr"),
            # what an algorithm is for
            (
                "p.x_stride, p.w_stride, plus_stride_of(p), p.out_stride}",
                "p.w_stride, plus_stride_of(p), p.out_stride}",
            ),
            ("p.x_stride, p.w_stride, plus_stride_of(p), p.out_stride}", "p.x_stride, p.w_stride, p.out_stride}"),
            ("plus_stride_of(p), p.out_stride}", "plus_stride_of(p)}"),
            ("for (const uint32_t each : alignments(p)) shape.push_back(each);", ""),
            ("sizeof each);\n    int count", "2);\n    int count"),
            ("uintptr_t>(p) | 256", "uintptr_t>(nullptr) | 256"),
            # what is added, and pieces of rows
            ("add = p.plus ? 1 : 0", "add = 0"),
            ("add = p.plus ? 1 : 0", "add = 1"),
            ("    second.plus = second.out;", ""),
            ("p.x = parts.low;", "p.x = parts.high;"),
            ("v.data) + piece.first * v.stride", "v.data) + 0 * v.stride"),
        )
    ),
    Mutant("host", CUBLASLT, LARGE, "plain && (out_dtype", "(out_dtype", file="host/large_products.h"),
    Mutant("host", CUBLASLT, LARGE, "(direct ? 0 : int64_t{4} * N)", "0", file="host/large_products.h"),
    Mutant(
        "host",
        CUBLASLT,
        LARGE,
        "(out_dtype == w_dtype && !has_residual)",
        "out_dtype == w_dtype",
        file="host/large_products.h",
    ),
    Mutant(
        "host",
        CUBLASLT,
        LARGE,
        "large.run(p, program_.stream_)",
        "large.run(p, program_.copy_stream_)",
        file="host/launcher.cpp",
    ),
    Mutant("host", CUBLASLT, LARGE, "if (shape.direct) continue;", "continue;", file="host/launcher.cpp"),
    Mutant("host", CUBLASLT, LARGE, "if (!large.knows(p)) return DI_OK;", "large.knows(p);", file="host/launcher.cpp"),
]
SLOW = pytest.mark.slow
PARAMETERS = [pytest.param(mutant, id=str(mutant), marks=() if mutant.is_quick else SLOW) for mutant in MUTANTS]
ORIGINALS = {(mutant.kernel, mutant.tests, mutant.chosen): mutant for mutant in reversed(MUTANTS)}
ORIGINAL_PARAMETERS = [pytest.param(mutant, id=" ".join(key), marks=SLOW) for key, mutant in ORIGINALS.items()]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The host library as it is, file by file; a mutant compiles the file that it changes."""
    return Objects(tmp_path_factory.mktemp("objects"))


class Objects:
    """Object files of the host library, compiled when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Path:
        target = self._folder / f"{name}.o"
        if not target.exists():
            compile_to(target, KERNELS, ["-c", f"-I{HEADERS}", str(KERNELS / "host" / f"{name}.cpp")])
        return target


@pytest.mark.parametrize("mutant", PARAMETERS)
def test_a_mutant_is_noticed(mutant: Mutant, tmp_path: Path, objects: Objects) -> None:
    """A test fails, or the process crashes or hangs; not for want of tests or of a compiler."""
    status, output = outcome(mutant, compiled(mutant, tmp_path, objects))
    assert status == 1 or status < 0, f"{mutant} was not noticed (status {status}):\n{output}"


@pytest.mark.parametrize("mutant", ORIGINAL_PARAMETERS)
def test_the_original_passes(mutant: Mutant, tmp_path: Path, objects: Objects) -> None:
    """What a mutant is compiled from and tested with passes without its mutation."""
    status, output = outcome(mutant, compiled(replace(mutant, new=mutant.old), tmp_path, objects))
    assert status == 0, output


def outcome(mutant: Mutant, library: Path) -> tuple[int, str]:
    """The status and the last words of the mutant's tests with a library in the place of the original."""
    environment = {**os.environ, f"CUDA_{'HOST' if mutant.kernel == 'host' else 'KERNEL'}_MUTANT": str(library)}
    environment.pop("DASHINFER_TEST_ALL", None)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", mutant.chosen]
    command += ["-o", "faulthandler_timeout=150", str(HERE / mutant.tests)]  # a hang ends before it ends this run
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    return done.returncode, done.stdout[-2000:] + done.stderr[-1000:]


def compiled(mutant: Mutant, folder: Path, objects: Objects) -> Path:
    """The library of the mutated source."""
    if why := missing():
        pytest.skip(why)
    sources = folder / "kernels"
    shutil.copytree(KERNELS, sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    file = sources / (mutant.file or f"{mutant.kernel}.cu")
    parts = file.read_text().split(mutant.old)
    assert len(parts) > mutant.nth + 1, f"{mutant}: there is no such place"
    before, after = parts[: mutant.nth + 1], parts[mutant.nth + 1 :]
    file.write_text(mutant.old.join(before) + mutant.new + mutant.old.join(after))
    library = folder / f"{mutant.kernel}.so"
    if mutant.kernel == "host":
        changed = [file] if file.suffix == ".cpp" else sorted((sources / "host").glob("*.cpp"))
        unchanged = [objects[path.stem] for path in (sources / "host").glob("*.cpp") if path not in changed]
        compile_to(library, sources, [f"-I{HEADERS}", *map(str, changed), *map(str, unchanged), "-ldl"])
    else:
        compile_to(library, sources, ["-DDI_EMU", "-DDI_ARCH=800", "-x", "c++", str(sources / f"{mutant.kernel}.cu")])
    return library


def compile_to(target: Path, sources: Path, what: list[str]) -> None:
    """Runs the compiler, which must not complain."""
    done = subprocess.run(["g++", *FLAGS, f"-I{sources}", *what, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
