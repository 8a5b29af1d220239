"""What the reference device keeps of keys and values: rounded numbers, or integers with a scale a token and head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dashinfer_lite.devices.reference_ops import rounded

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

LARGEST_CODE: Final = {"u8": 255, "u4": 15}
SMALLEST_SCALE: Final = np.float32(1e-5)


class Kept(NamedTuple):
    """Heads [T,Hkv,D] as the cache holds them: numbers, or integers (code - zero point) with scales [T,Hkv]."""

    values: Floats
    scales: Floats | None


def kept(x: Floats, dtype: str) -> Kept:
    """x[T,Hkv,D] rounded to `dtype`, or for "u8" and "u4" as integers that times a scale are nearest to it.

    scale = max((mx - mn) / R, 1e-5), zero = rint(-mn / scale), code = clamp(rint(x / scale) + zero, 0, R), with R = 255
    or 15 and mn = min(x, 0), mx = max(x, 0) over the D columns of a head. A head with a number that is not finite has
    scale NaN.
    """
    if dtype not in LARGEST_CODE:
        return Kept(rounded(x, dtype), None)
    largest = np.float32(LARGEST_CODE[dtype])
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    x = np.where(finite[..., None], x, np.float32(0))
    low, high = np.minimum(x.min(axis=-1), np.float32(0)), np.maximum(x.max(axis=-1), np.float32(0))
    with np.errstate(over="ignore", divide="ignore"):
        scales = np.maximum((high - low) / largest, SMALLEST_SCALE)
        zeros = np.rint(-low / scales)
        codes = np.clip(np.rint(x / scales[..., None]) + zeros[..., None], 0, largest)
    return Kept(codes - zeros[..., None], np.where(finite, scales, np.float32(np.nan)))


def operand_dtype(kv_dtype: str) -> str:
    """What queries and probabilities are rounded to beside such a cache: integers are multiplied as bf16."""
    return "bf16" if kv_dtype in LARGEST_CODE else kv_dtype
