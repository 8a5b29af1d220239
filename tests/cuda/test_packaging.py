"""Two wheels from one setup.py, and what they do together on a machine without a GPU."""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from cuda_emulator import emulator, missing
from kernel_budgets import kernels

HOUSE = Path(__file__).resolve().parents[2]
WHEELS = os.environ.get("DASHINFER_TEST_WHEELS")  # a folder with both; building them takes minutes
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels of this checkout, kernels for every architecture where a compiler is there; or those ready built."""
    if ready := WHEELS:
        return Path(ready)
    out = tmp_path_factory.mktemp("wheels")
    for environment in ({}, {"DASHINFER_DIST": "cuda"}):
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
            f"{m}.{architecture}.cubin" for m in modules for architecture in kernels.ARCHITECTURES
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


def test_the_extra(wheels: Path, tmp_path: Path) -> None:
    """`pip install --no-index --find-links … "dashinfer-lite[cuda]"` in a fresh environment takes both wheels.

    What these need of the index is there already: linked from this environment. Then they work together.
    """
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True)
    (site,) = (fresh / "lib").glob("python*/site-packages")
    link_dependencies("dashinfer-lite", wheels, site)
    python = [str(fresh / "bin" / "python"), "-I"]
    install = [*python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels)]
    done = subprocess.run([*install, "dashinfer-lite[cuda]"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [*python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    versions = dict(line.split("==") for line in listed.stdout.split() if "==" in line)
    assert versions["dashinfer-cuda"] == versions["dashinfer-lite"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DASHINFER_", "PYTHON"))}
    environment["DASHINFER_CUDA_DRIVER"] = str(tmp_path / "no-driver.so")
    tool = subprocess.run(
        [*python, "-m", "dashinfer_cuda"], env=environment, capture_output=True, text=True, check=False
    )
    assert tool.returncode == 1 and "device     none: the NVIDIA driver's library was not found" in tool.stdout
    if missing():
        return
    made = emulator()
    for name, path in (("DRIVER", made.driver), ("KERNELS", made.kernels), ("CUBLASLT", made.driver)):
        environment[f"DASHINFER_CUDA_{name}"] = str(path)
    tool = subprocess.run(
        [*python, "-m", "dashinfer_cuda", "--quick"], env=environment, capture_output=True, text=True, check=False
    )
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert "the same tokens as on the CPU" in tool.stdout


def link_dependencies(name: str, wheels: Path, site: Path) -> None:
    """Links everything that a wheel needs, and what that needs, from this environment into another."""
    (path,) = wheels.glob(f"{name.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(path) as wheel:
        (metadata,) = (entry for entry in wheel.namelist() if entry.endswith(".dist-info/METADATA"))
        needed = email.message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist") or []
    todo, seen = list(needed), set[str]()
    while todo:
        requirement = todo.pop()
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        if "extra ==" in requirement or found is None or found[0].lower() in seen:
            continue
        seen.add(found[0].lower())
        try:
            distribution = importlib.metadata.distribution(found[0])
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(distribution.locate_file(top)))
            if not (site / top).exists() and source.exists():
                (site / top).symlink_to(source)
        todo += distribution.requires or []
