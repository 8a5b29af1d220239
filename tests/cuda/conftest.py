"""CUDA kernels on the emulator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cuda_emulator import emulator, missing
from emulated_kernels import Kernels


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compiles before the first test begins: no test's time limit is meant for that."""
    here = Path(__file__).parent
    if (
        not session.config.option.collectonly
        and not missing()
        and any(here in item.path.parents for item in session.items)
    ):
        emulator()


@pytest.fixture(scope="session", params=[80, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (70, 75))])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """All kernels, on the code paths of SM80; in the full matrix also on those of SM70 and SM75, which have fewer."""
    return kernels_of(request.param)


def kernels_of(arch: int) -> Kernels:
    """All kernels on the code paths of an architecture; skips where the emulator cannot be compiled."""
    if why := missing():
        pytest.skip(why)
    found = Kernels.of_images(emulator(arch).kernels / "cubin", arch)
    if mutant := os.environ.get("CUDA_KERNEL_MUTANT"):  # see test_mutants.py
        return Kernels([Path(mutant)], arch, found)
    return found
