"""Tiles of tensor cores on Volta's, Turing's and Ampere's instructions: small integers, so that every bit must fit."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import COMMON, KERNELS, missing
from emulated_kernels import Kernels, Memory

SOURCE = Path(__file__).with_name("tile_kernels.cu")


class TileArgs(ctypes.Structure):
    """The struct of tile_kernels.cu."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "w", "v", "s", "y", "z")]


@pytest.mark.parametrize("arch", [70, 75, 80])
def test_products(arch: int, tmp_path: Path) -> None:
    """Operands through shared memory, sums as operands, and operands straight from memory."""
    if why := missing():
        pytest.skip(why)
    library = tmp_path / "tile.so"
    flags = [*COMMON, "-DDI_EMU", f"-DDI_ARCH={arch}0", f"-I{KERNELS}", "-Wno-unknown-pragmas", "-x", "c++"]
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library)], check=True)
    rng, memory = np.random.default_rng(arch), Memory()
    x, w = (memory.put(rng.integers(-4, 5, (16, 32)).astype(np.float16)) for _ in range(2))
    v = memory.put(rng.integers(-4, 5, (16, 16)).astype(np.float16))
    s, y, z = (memory.full((16, 16), np.float32, np.nan) for _ in range(3))
    args = TileArgs(*(each.ctypes.data for each in (x, w, v, s, y, z)))
    Kernels([library], arch).run("tile_products", (1,), 32, args)
    u, t = x.astype(np.float32), w.astype(np.float32)
    np.testing.assert_array_equal(s, u[:, :16] @ t[:, :16].T)
    np.testing.assert_array_equal(y, s @ v.astype(np.float32))
    np.testing.assert_array_equal(z, u @ t.T)
