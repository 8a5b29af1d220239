"""CUDA kernels on the emulator, for one architecture's code paths."""

from __future__ import annotations

import pytest
from cuda_emulator import emulator, missing
from emulated_kernels import Kernels


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """All kernels, on the code paths of SM80."""
    return kernels_of(80)


def kernels_of(arch: int) -> Kernels:
    """All kernels on the code paths of an architecture; skips where the emulator cannot be compiled."""
    if why := missing():
        pytest.skip(why)
    return Kernels.of_images(emulator(arch).kernels / "cubin")
