"""InstantQuant in NumPy: from rows of numbers to codes, without calibration.

For each row and group of K, with mn = min(w, 0), mx = max(w, 0) and R the largest code:

    scale = (mx - mn) / R, rounded to the type that scales are kept in
    zero  = clamp(rint(-mn / scale), 0, R)
    code  = clamp(rint(w / scale) + zero, 0, R)          w ≈ (code - zero) · scale

The formula is that of DashInfer's InstantQuant but for two points: the zero point is an integer, and the range always
holds 0, so that zeros stay zeros. Source: DashInfer's documentation, "Weight quantization".
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from dashinfer_lite.weights.grid import Codes, Grid

Floats = npt.NDArray[np.float32]

# The smallest normal number of each scale type.
SMALLEST: Final = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-14}


def instant_quant(w: Floats, grid: Grid) -> Codes:
    """Rows w[rows,K] on a grid; ValueError where a value is not finite, or too large for the grid's scales."""
    if not np.isfinite(w).all():
        raise ValueError("holds values that are not finite")
    rows, k = w.shape
    width, groups = grid.width(k), grid.groups(k)
    padded = np.zeros((rows, groups * width), np.float32)
    padded[:, :k] = _flushed(w)
    parts = padded.reshape(rows, groups, width)
    levels = np.float32(grid.levels)
    lowest, highest = np.minimum(parts.min(axis=2), 0), np.maximum(parts.max(axis=2), 0)
    with np.errstate(over="ignore", under="ignore"):
        extent = _flushed(highest - lowest)
        scales = round_scales(extent / levels, grid.scale_dtype)
        scales = np.where(extent == 0, np.float32(1), scales)
        if not np.isfinite(scales).all():
            raise ValueError(f"holds values that are too large for scales in {grid.scale_dtype}")
        zeros = np.clip(np.rint(-lowest / scales), 0, levels)
        codes = np.clip(np.rint(parts / scales[:, :, None]) + zeros[:, :, None], 0, levels)
    return Codes(
        np.ascontiguousarray(codes.reshape(rows, -1)[:, :k].astype(np.uint8)),
        np.ascontiguousarray(scales),
        zeros.astype(np.int16),
    )


def round_scales(scales: Floats, dtype: str) -> Floats:
    """Positive fp32 numbers to nearest even of a scale type; what becomes 0 there is its smallest normal number."""
    if dtype == "f16":
        with np.errstate(over="ignore"):
            scales = scales.astype(np.float16).astype(np.float32)
    elif dtype == "bf16":
        bits = scales.view(np.uint32)
        scales = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(_flushed(scales) == 0, np.float32(SMALLEST[dtype]), scales)


def _flushed(x: Floats) -> Floats:
    """Denormal numbers are zeros, as on every device."""
    return np.where(np.abs(x) < np.float32(SMALLEST["f32"]), np.float32(0), x)
