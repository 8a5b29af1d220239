"""InstantQuant against its formula in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashinfer_lite.graph.instant_quant import SMALLEST, instant_quant, round_scales
from dashinfer_lite.weights.grid import Codes, Grid, dequantize

GRIDS = [Grid(bits, group, dtype) for bits in (4, 8) for group in (0, 32) for dtype in ("f32", "f16", "bf16")]
PRECISION = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


def check(w: np.ndarray, grid: Grid) -> Codes:
    """Every step of the formula within the rounding of fp32, and the round trip within half a step."""
    rows = instant_quant(w, grid)
    n, k = w.shape
    width, groups, top = grid.width(k), grid.groups(k), grid.levels
    assert rows.codes.shape == w.shape and rows.scales.shape == rows.zeros.shape == (n, groups)
    assert (rows.codes.dtype, rows.scales.dtype, rows.zeros.dtype) == (np.uint8, np.float32, np.int16)
    assert (rows.scales > 0).all() and np.isfinite(rows.scales).all() and rows.codes.max() <= top
    np.testing.assert_array_equal(round_scales(rows.scales, grid.scale_dtype), rows.scales)
    for g in range(groups):
        part = w[:, g * width : (g + 1) * width].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        scale, zero = rows.scales[:, g].astype(np.float64), rows.zeros[:, g].astype(np.float64)
        wanted = np.where(high == low, 1, (high - low) / top)
        normal = wanted >= SMALLEST[grid.scale_dtype]
        assert (
            np.abs(scale - wanted)[normal] <= (1.01 * PRECISION[grid.scale_dtype] + 2.0**-23) * wanted[normal]
        ).all()
        assert (zero >= 0).all() and (zero <= top).all()
        # A tie may go either way where the quotient itself was rounded.
        assert (np.abs(zero - np.clip(-low / scale, 0, top)) <= 0.5 + 1e-3).all()
        codes = rows.codes[:, g * width : (g + 1) * width].astype(np.float64)
        steps = np.clip(part / scale[:, None] + zero[:, None], 0, top)
        assert (np.abs(codes - steps) <= 0.5 + 1e-3).all()
        # Half a step, and at the ends what rounding the scale and the zero point cut off.
        error = np.abs((codes - zero[:, None]) * scale[:, None] - part)
        ends = 0.5 + top * PRECISION[grid.scale_dtype]
        assert (error <= scale[:, None] * (0.5 + ends + 1e-3)).all()
        inside = (part >= (1 - zero)[:, None] * scale[:, None]) & (part <= (top - 1 - zero)[:, None] * scale[:, None])
        assert (error[inside] <= (scale[:, None] * (0.5 + 1e-3) + np.zeros_like(part))[inside]).all()
    return rows


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("k", [1, 31, 32, 80])
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e5])
def test_random_rows(grid: Grid, k: int, magnitude: float) -> None:
    rng = np.random.default_rng(k)
    if grid.scale_dtype == "f16":
        magnitude = min(max(magnitude, 0.1), 1e4)
    w = (rng.standard_normal((9, k)) * magnitude).astype(np.float32)
    w[1] = np.abs(w[1])
    w[2] = -np.abs(w[2])
    w[3, k // 2] *= 50
    check(w, grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_zeros_stay_zeros(grid: Grid) -> None:
    w = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    w[:, ::3] = 0
    w[3] = 0
    rows = check(w, grid)
    back = dequantize(rows, grid)
    assert (back[:, ::3] == 0).all() and (back[3] == 0).all()
    assert (rows.scales[3] == 1).all() and (rows.zeros[3] == 0).all() and (rows.codes[3] == 0).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-20, -1e-20])
def test_constant_rows_are_kept(grid: Grid, value: float) -> None:
    """A row of one value spans from 0 to it; both ends are on the grid."""
    if grid.scale_dtype == "f16" and abs(value) < 1:
        value = float(np.copysign(0.01, value))
    w = np.full((2, 64), value, np.float32)
    rows = check(w, grid)
    assert np.abs(dequantize(rows, grid) / w - 1).max() <= 2 * PRECISION[grid.scale_dtype]
    assert (rows.codes == (grid.levels if value > 0 else 0)).all()
    assert (rows.zeros == (0 if value > 0 else grid.levels)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_largest_and_smallest_numbers(grid: Grid) -> None:
    """Nothing divides by zero, denormal numbers are zeros, and a scale that overflows is an error."""
    w = np.zeros((3, 32), np.float32)
    w[0, :2] = SMALLEST["f32"], -SMALLEST["f32"]
    w[1, 0] = 1e-42
    w[2, :2] = 1e-7, -1e-7
    rows = instant_quant(w, grid)
    assert (rows.scales > 0).all() and np.isfinite(dequantize(rows, grid)).all()
    assert rows.scales[0, 0] == SMALLEST[grid.scale_dtype]
    assert rows.scales[1, 0] == 1 and not rows.codes[1].any()
    largest = np.finfo(np.float32).max
    w[0, :2] = largest, -largest
    with pytest.raises(ValueError, match=f"too large for scales in {grid.scale_dtype}"):
        instant_quant(w, grid)
    check(np.full((1, 3), 6e4 if grid.scale_dtype == "f16" else 1e38, np.float32), grid)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    w = np.zeros((2, 32), np.float32)
    w[1, 7] = value
    with pytest.raises(ValueError, match="not finite"):
        instant_quant(w, Grid(8))


def test_a_short_last_group_has_a_scale_of_its_own() -> None:
    w = np.ones((1, 40), np.float32)
    w[0, 32:] = 255
    rows = check(w, Grid(8, 32))
    np.testing.assert_array_equal(rows.scales, np.array([[1 / 255, 1]], np.float32))


@given(
    st.lists(st.floats(-(2.0**17), 2.0**17, width=32), min_size=1, max_size=40),
    st.sampled_from(GRIDS),
)
@settings(deadline=None, print_blob=True, max_examples=150)
def test_any_numbers_come_back_within_a_step(values: list[float], grid: Grid) -> None:
    w = np.array([values], np.float32)
    rows = instant_quant(w, grid)
    k = len(values)
    scales = np.repeat(rows.scales, grid.width(k), axis=1)[:, :k].astype(np.float64)
    zeros = np.repeat(rows.zeros, grid.width(k), axis=1)[:, :k]
    back = (rows.codes.astype(np.float64) - zeros) * scales
    assert (np.abs(back - w) <= scales * (1.01 + grid.levels * PRECISION[grid.scale_dtype])).all()
