"""How weights are laid out for the GPU, against NumPy: padding, rounding, quantizing, the order of codes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import HEADERS, KERNELS
from hypothesis import given
from hypothesis import strategies as st
from kernel_data import random_codes
from one_op import examples, rounded, stored

from dashinfer_lite.graph.instant_quant import instant_quant
from dashinfer_lite.weights.grid import Grid

DTYPES = {"f32": 0, "f16": 1, "bf16": 2}
CELL = 64


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The packers, compiled here."""
    if not KERNELS.is_dir() or not shutil.which("g++"):
        pytest.skip("needs the checkout and g++")
    target = tmp_path_factory.mktemp("pack") / "pack.so"
    source = Path(__file__).with_name("pack_library.cpp")
    flags = [
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    subprocess.run(["g++", *flags, f"-I{KERNELS}", f"-I{HEADERS}", str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def rows_of(array: np.ndarray, missing: set[int] = frozenset()) -> Any:  # type: ignore[assignment]
    """The addresses of an array's rows; null for those that are missing."""
    return (ctypes.c_void_p * len(array))(*(None if i in missing else row.ctypes.data for i, row in enumerate(array)))


def shape_of(k: int, group: int, bits: int, scales: str) -> Any:
    groups = -(-k // group)
    return (ctypes.c_int * 6)(k, group, groups, -(-group // CELL) * CELL, bits, DTYPES[scales])


@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("target", ["f32", "f16", "bf16"])
def test_rows(library: ctypes.CDLL, source: str, target: str) -> None:
    """Each group is padded with zeros; values are rounded to nearest even; a missing row is zeros."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal(60) * 10.0 ** rng.integers(-3, 3, 60)
    values[:4] = [0, -0.0, np.inf, 1 + 2.0**-8]
    values = rounded(values, source)
    raw = stored(values, source)
    out = np.full(96, 0x7777, np.uint16) if target != "f32" else np.full(96, 7, np.float32)
    library.pack_row(address(raw), DTYPES[source], 60, 20, 32, address(out), DTYPES[target])
    expected = np.zeros((3, 32), np.float32)
    expected[:, :20] = rounded(values, target).reshape(3, 20)
    np.testing.assert_array_equal(out.view(np.uint8), stored(expected.reshape(-1), target).view(np.uint8))
    library.pack_row(None, DTYPES[source], 60, 20, 32, address(out), DTYPES[target])
    assert not out.any()


@examples(20)
@given(
    k=st.integers(1, 200),
    group=st.sampled_from([1, 16, 32, 48, 64, 128, 200]),
    bits=st.sampled_from([4, 8]),
    scales=st.sampled_from(["f32", "f16", "bf16"]),
    spread=st.sampled_from([0, 1e-30, 1, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_instant_quant(
    library: ctypes.CDLL, k: int, group: int, bits: int, scales: Any, spread: float, seed: int
) -> None:
    """The codes, scales and zero points of docs/arithmetic.md, bit by bit."""
    group = min(group, k)
    w = (spread * np.random.default_rng(seed).standard_normal((1, k))).astype(np.float32)
    expected = instant_quant(w, Grid(bits, group, scales))
    groups = -(-k // group)
    codes, found, zeros = np.zeros(k, np.uint8), np.zeros(groups, np.float32), np.zeros(groups, np.int16)
    assert library.instant_quant(
        address(w), 0, shape_of(k, group, bits, scales), address(codes), address(found), address(zeros)
    )
    np.testing.assert_array_equal(codes, expected.codes[0])
    np.testing.assert_array_equal(found, expected.scales[0])
    np.testing.assert_array_equal(zeros, expected.zeros[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_that_cannot_be_quantized(library: ctypes.CDLL, value: float) -> None:
    """Values that are not finite, or whose scale is too large for its type."""
    w = np.ones(32, np.float32)
    w[7] = value
    out = np.zeros(64, np.uint8), np.zeros(4, np.float32), np.zeros(4, np.int16)
    assert not library.instant_quant(address(w), 0, shape_of(32, 16, 8, "f16"), *map(address, out))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "group"), [(64, 64), (100, 100), (130, 48), (256, 128), (70, 16)])
def test_codes(library: ctypes.CDLL, bits: int, k: int, group: int) -> None:
    """The order that tensor cores take: units of 16 rows by 64 columns, 16 bytes a lane; missing rows are zeros."""
    n = 32
    weight = random_codes(np.random.default_rng(k), n, k, bits, group, "f16")
    codes, scales, zeros = (np.ascontiguousarray(part) for part in weight.rows)
    shape = shape_of(k, group, bits, "f16")
    padded = shape[2] * shape[3]
    packed = np.full(n * padded * bits // 8, 0xEE, np.uint8)
    library.pack_codes(shape, n, rows_of(codes, {5, 31}), address(packed))
    for row in range(n):
        for column in range(padded):
            g, at = divmod(column, shape[3])
            inside = at < group and g * group + at < k and row not in (5, 31)
            assert code_at(packed, padded, bits, row, column) == (codes[row, g * group + at] if inside else 0)
    out_scales, out_zeros = np.ones((shape[2], n), np.uint16), np.ones((shape[2], n), np.int16)
    library.pack_grid(
        shape, n, rows_of(codes, {5, 31}), rows_of(scales), rows_of(zeros), address(out_scales), address(out_zeros)
    )
    scales[[5, 31]], zeros[[5, 31]] = 0, 0
    np.testing.assert_array_equal(out_scales, stored(scales, "f16").view(np.uint16).T)
    np.testing.assert_array_equal(out_zeros, zeros.T)


def code_at(packed: np.ndarray, padded: int, bits: int, row: int, column: int) -> int:
    """The formula of codes.cuh, element by element."""
    unit = (row // 16) * (padded // 64) + column // 64
    half, lane = row // 8 % 2, row % 8 * 4 + column // 16 % 4
    if bits == 8:
        return int(packed[unit * 1024 + half * 512 + lane * 16 + column % 16])
    byte = packed[unit * 512 + lane * 16 + (2 * half + column // 8 % 2) * 4 + column % 4]
    return int(byte >> (column & 4)) & 15
