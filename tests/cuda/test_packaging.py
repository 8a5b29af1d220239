"""Two wheels from one setup.py, and what they do together on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels of this checkout; kernels for one architecture where a compiler is there."""
    out = tmp_path_factory.mktemp("wheels")
    for environment in ({}, {"DASHINFER_DIST": "cuda", "DASHINFER_CUDA_ARCHS": "sm_80"}):
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-build-isolation",
            "--no-deps",
            "-w",
            str(out),
            str(HOUSE),
        ]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_the_wheel_is_whole(wheels: Path) -> None:
    """No Python's ABI; host library, sources, cubins where a compiler was there; nothing of the other wheel."""
    (path,) = wheels.glob("dashinfer_cuda-*.whl")
    assert path.name.endswith("-py3-none-linux_x86_64.whl")
    names = zipfile.ZipFile(path).namelist()
    package = {name.removeprefix("dashinfer_cuda/") for name in names if name.startswith("dashinfer_cuda/")}
    sources = {
        f"src/{source.name}" for pattern in ("*.cu", "*.cuh") for source in (HOUSE / "cuda_kernels").glob(pattern)
    }
    assert package >= {"__init__.py", "__main__.py", "_find.py", "libdashinfer_cuda.so", "src/args.h", *sources}
    assert not any(name.startswith("dashinfer_lite/") or "/emu/" in name or "/host/" in name for name in names)
    if "cubin/manifest.json" in package:
        modules = {source.stem for source in (HOUSE / "cuda_kernels").glob("*.cu")}
        assert {name.removeprefix("cubin/") for name in package if name.endswith(".cubin")} == {
            f"{m}.sm_80.cubin" for m in modules
        }


def test_together_without_a_gpu(wheels: Path, tmp_path: Path) -> None:
    """The device is found by its entry point and says in one sentence why it cannot be used; the CPU works."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, *map(str, wheels.glob("*.whl"))], check=True, capture_output=True)
    program = (
        "import dashinfer_lite, dashinfer_cuda, sys\n"
        "from pathlib import Path\n"
        "assert Path(dashinfer_cuda.__file__).is_relative_to(sys.argv[1])\n"
        "rows = {row.name: row for row in dashinfer_lite.devices()}\n"
        "assert rows['cpu'].usable\n"
        "print(rows['cuda'].usable, rows['cuda'].reason)\n"
        "with dashinfer_lite.LLM(threads=1) as llm:\n"
        "    print(len(llm.generate('Once', dashinfer_lite.SamplingParams(max_tokens=3))[0].outputs[0].token_ids))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "DASHINFER_CUDA_DRIVER": str(tmp_path / "no-driver.so")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(site)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("False the NVIDIA driver's library was not found") and second == "3"


def test_the_extra(wheels: Path) -> None:
    """`dashinfer-lite[cuda]` brings the other wheel along, of the same version."""
    (lite,) = wheels.glob("dashinfer_lite-*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-index",
        "--find-links",
        str(wheels),
        f"{lite}[cuda]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version = lite.name.split("-")[1]
    assert f"dashinfer-cuda-{version}" in done.stdout.replace("_", "-")
