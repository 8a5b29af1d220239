"""The op "rope_table" in NumPy: cosines and sines of a step's positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dashinfer_lite.graph.rope_frequencies import RopeFrequencies, RopeKind, dynamic_frequencies

if TYPE_CHECKING:
    from collections.abc import Sequence


def rope_table(
    freqs: RopeFrequencies,
    positions: np.ndarray,
    prompt_len: np.ndarray,
    sections: Sequence[int] = (),
    interleaved: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin, fp32 [T, h].

    `positions` is int32 [rows, T]; `prompt_len` [T] is the prompt length of each token's sequence. `sections` says how
    many frequencies turn by each position row, one run after the other or, `interleaved`, in turns; a row that the step
    lacks is replaced by row 0. Angles are fp32 products; cosine and sine are rounded from double precision to fp32 and
    then multiplied by the attention factor.
    """
    half = len(freqs.inv_freq)
    rows = np.array([row if row < len(positions) else 0 for row in position_rows(half, sections, interleaved)], np.intp)
    frequencies = _frequencies(freqs, np.maximum(prompt_len, positions[0] + 1))
    angles = (positions[rows].T.astype(np.float32) * frequencies).astype(np.float64)
    factor = np.float32(freqs.attention_factor)
    return np.cos(angles).astype(np.float32) * factor, np.sin(angles).astype(np.float32) * factor


def position_rows(half: int, sections: Sequence[int], interleaved: bool) -> list[int]:
    """Return, for each of the `half` frequencies, the position row that turns it.

    Interleaved: 0 1 2 0 1 2 … while a row's section lasts, then 0. Frequencies beyond all sections: 0.
    """
    if interleaved:
        return [j % 3 if j % 3 and j < 3 * sections[j % 3] else 0 for j in range(half)]
    rows = [row for row, count in enumerate(sections) for _ in range(count)]
    return (rows + [0] * half)[:half]


def _frequencies(freqs: RopeFrequencies, history: np.ndarray) -> np.ndarray:
    """Return inv_freq [T, h] for tokens whose sequences are `history` [T] long.

    Theta and factor are rounded to fp32, as a program carries them.
    """
    table = np.repeat(freqs.inv_freq[None], len(history), axis=0)
    for t in np.flatnonzero(history > freqs.original_max) if freqs.kind is not RopeKind.STATIC else ():
        if freqs.kind is RopeKind.LONG:
            assert freqs.long_inv_freq is not None
            table[t] = freqs.long_inv_freq
        else:
            theta, factor = float(np.float32(freqs.theta)), float(np.float32(freqs.factor))
            table[t] = dynamic_frequencies(theta, factor, freqs.original_max, int(history[t]), 2 * freqs.inv_freq.size)
    return table
