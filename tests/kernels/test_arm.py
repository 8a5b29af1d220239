"""The generic kernels on 64-bit ARM: NEON, and SVE at three vector lengths, cross-compiled, under an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "cpu_kernels"
PROGRAM = Path(__file__).resolve().parent / "native" / "arm_test.cpp"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = (
    "-O2",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Werror",
)
# Build → folder of its vec.h, compiler flags, emulated processor. NEON's has no SVE: a leak is an illegal instruction.
BUILDS = {
    "neon": ("neon", (), "cortex-a57"),
    **{
        f"sve{bits}": ("sve", ("-march=armv8.2-a+sve", f"-msve-vector-bits={bits}"), f"max,sve{bits}=on")
        for bits in (128, 256, 512)
    },
}
LONG = ("sve128", "sve512")  # part of the full matrix: every length is the same source
CASES = ("products_f32", "products_f16", "products_bf16", "rms_norms", "elementary", "lanes", "rounding", "kv_codes")


def compile_cpp(folder: Path, *arguments: str) -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} on this machine")
    done = subprocess.run([COMPILER, *FLAGS, f"-I{KERNELS}", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(done.stderr, pytrace=False)


@pytest.fixture(
    scope="module",
    params=[pytest.param(build, marks=pytest.mark.slow if build in LONG else ()) for build in BUILDS],
)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line that runs the test program of one build."""
    tier, flags, processor = BUILDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    compile_cpp(
        folder, f"-I{KERNELS / tier}", *flags, "-Wno-unused-function", "-static", str(PROGRAM), "-o", "arm_test"
    )
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("compiled for aarch64, but there is no qemu-aarch64 to run it")
    return [emulator, "-cpu", processor, str(folder / "arm_test")]


@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_scalar_code(command: list[str], case: str) -> None:
    done = subprocess.run([*command, case], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)} {case} ended with {done.returncode}\n{done.stderr}"


def test_neon_table_is_tidy(tmp_path: Path) -> None:
    """The whole tier compiles, and its object offers one symbol and nothing that a linker could share."""
    compile_cpp(tmp_path, "-O1", "-fvisibility=hidden", "-c", str(KERNELS / "neon" / "table.cpp"), "-o", "table.o")
    listing = subprocess.run(["aarch64-linux-gnu-nm", "-C", "table.o"], cwd=tmp_path, capture_output=True, text=True)
    symbols = [line[17:].split(" ", 1) for line in listing.stdout.splitlines()]
    assert [name for kind, name in symbols if kind in "WVuTDB"] == ["di::neon_table()"]
