"""`pip wheel .` gives one wheel with every tier that runs on a machine without a compiler, of tidy objects."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dashinfer_lite import _native

HOUSE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; objects of an earlier build are taken over where they are up to date."""
    if not shutil.which("g++"):
        pytest.skip("needs g++ to build the wheel")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(HOUSE)]
    if all(importlib.util.find_spec(tool) for tool in ("setuptools", "Cython")):
        command.append("--no-build-isolation")  # fresh tools look newer than what they made, and all is made again
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (path,) = out.glob("*.whl")
    return path


def test_it_is_whole(wheel: Path) -> None:
    """One extension module, no sources of it, nothing outside the package."""
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.endswith(".so") for name in names) == 1
    assert not any(name.endswith((".cpp", ".o")) for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dashinfer_lite"}


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize("tier", [name for name, _, _ in _native.tiers()])
def test_objects_of_tiers_leak_nothing(tier: str) -> None:
    """A tier exports its table alone: a shared inline function could carry its instructions to old processors."""
    nm = shutil.which("nm")
    if not nm:
        pytest.skip("needs nm to list symbols")
    (target,) = HOUSE.glob(f"build/temp.*-{sys.implementation.cache_tag}/cpu_kernels_{tier}_table.o")
    listing = subprocess.run([nm, "-C", target], check=True, capture_output=True, text=True).stdout
    if "__asan" in listing:
        pytest.skip("the sanitizer adds symbols of its own")
    symbols = [line[17:].split(" ", 1) for line in listing.splitlines()]
    assert [name for kind, name in symbols if kind in "TDBRSWVuvw"] == [f"di::{tier}_table()"]
    assert not any("_GLOBAL__sub_I" in name for _, name in symbols), "static constructors"


def test_it_runs_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, with an empty PATH, it answers; and it holds all tiers of its architecture."""
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    program = (
        "import sys, dashinfer_lite\n"
        "from pathlib import Path\n"
        "from dashinfer_lite import LLM, SamplingParams, _native\n"
        "assert Path(dashinfer_lite.__file__).is_relative_to(sys.argv[1]), dashinfer_lite.__file__\n"
        "with LLM(threads=1) as llm:\n"
        "    print(llm.generate('Once upon a time', SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text)\n"
        "print([name for name, _, _ in _native.tiers()])\n"
    )
    environment = {"PATH": "", "PYTHONPATH": str(target), "HOME": str(tmp_path)}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text, tiers = done.stdout.strip().splitlines()[:-1], done.stdout.strip().splitlines()[-1]
    assert "".join(text).strip()
    assert "scalar" in tiers
