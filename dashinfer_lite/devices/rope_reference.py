"""The op "rope_table" in NumPy: cosines and sines of a step's positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dashinfer_lite.graph.rope_frequencies import RopeFrequencies, RopeKind, dynamic_frequencies, prompt_frequencies

if TYPE_CHECKING:
    from collections.abc import Sequence


def rope_table(
    freqs: RopeFrequencies,
    positions: np.ndarray,
    prompt_len: np.ndarray,
    sections: Sequence[int] = (),
    interleaved: bool = False,
    logn: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin, fp32 [T, h].

    `positions` is int32 [rows, T]; `prompt_len` [T] is the prompt length of each token's sequence. `sections` says how
    many frequencies turn by each position row, one run after the other or, `interleaved`, in turns; a row that the step
    lacks is replaced by row 0. Angles are fp32 products; cosine and sine are rounded from double precision to fp32 and
    then multiplied by the attention factor, and with `logn` from that position on by log(position + 1) / log(logn).
    """
    half = len(freqs.inv_freq)
    rows = np.array([row if row < len(positions) else 0 for row in position_rows(half, sections, interleaved)], np.intp)
    frequencies = _frequencies(freqs, np.asarray(prompt_len), positions[0])
    angles = (positions[rows].T.astype(np.float32) * frequencies).astype(np.float64)
    gain = np.full((len(angles), 1), freqs.attention_factor, np.float32)
    if logn:
        gain[:, 0] *= (np.log(np.maximum(positions[0] + 1.0, logn)) / np.log(logn)).astype(np.float32)
    return np.cos(angles).astype(np.float32) * gain, np.sin(angles).astype(np.float32) * gain


def position_rows(half: int, sections: Sequence[int], interleaved: bool) -> list[int]:
    """Return, for each of the `half` frequencies, the position row that turns it.

    Interleaved: 0 1 2 0 1 2 … while a row's section lasts, then 0. Frequencies beyond all sections: 0.
    """
    if interleaved:
        return [j % 3 if j % 3 and j < 3 * sections[j % 3] else 0 for j in range(half)]
    rows = [row for row, count in enumerate(sections) for _ in range(count)]
    return (rows + [0] * half)[:half]


def _frequencies(freqs: RopeFrequencies, prompt_len: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return inv_freq [T, h] of tokens at `positions` [T] behind prompts of `prompt_len` [T].

    Theta and factor are rounded to fp32, as a program carries them.
    """
    table = np.repeat(freqs.inv_freq[None], len(positions), axis=0)
    if freqs.kind is RopeKind.STATIC:
        return table
    history = prompt_len if freqs.kind is RopeKind.PROMPT_NTK else np.maximum(prompt_len, positions + 1)
    theta, factor = float(np.float32(freqs.theta)), float(np.float32(freqs.factor))
    original, dims = freqs.original_max, 2 * freqs.inv_freq.size
    for t in np.flatnonzero(history > original):
        match freqs.kind:
            case RopeKind.LONG:
                table[t] = freqs.long_inv_freq
            case RopeKind.PROMPT_NTK:
                table[t] = prompt_frequencies(theta, original, int(history[t]), dims)
            case _:
                table[t] = dynamic_frequencies(theta, factor, original, int(history[t]), dims)
    return table
