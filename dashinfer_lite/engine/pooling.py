"""The vector of a prompt, from the hidden states of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

Kind = Literal["last", "mean"]
KINDS: Final = ("last", "mean")


class Pooling:
    """A prompt's vector in the making.

    "last" takes the last token's state, the only one that has seen the whole text; "mean" the mean of all. States are
    added in the order of their tokens and in fp64, so that chunks and batches change no bit.
    """

    def __init__(self, kind: Kind, tokens: int) -> None:
        self.takes_all = kind == "mean"  # a prefix from the cache has no states to give
        self._wanted = tokens if self.takes_all else 1
        self._sum: np.ndarray | None = None
        self._count = 0

    @property
    def is_complete(self) -> bool:
        """Whether all states have been taken."""
        return self._count == self._wanted

    def take(self, rows: np.ndarray) -> None:
        """Add the states [n,H] of the next tokens."""
        if self._sum is None:
            self._sum = np.zeros(rows.shape[1], np.float64)
        for row in rows:
            self._sum += row
        self._count += len(rows)

    def vector(self) -> list[float]:
        """The result [H], in fp32."""
        assert self._sum is not None
        mean: list[float] = (self._sum / self._count).astype(np.float32).tolist()
        return mean


def normalized(vector: Sequence[float]) -> list[float]:
    """The vector with length 1; one of zeros stays."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length > 0 else list(vector)
