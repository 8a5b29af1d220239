"""A grammar in the form that a device takes: one bit a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dashinfer_lite.errors import DashInferError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dashinfer_lite.engine.grammar import Matcher


class Guide:
    """Which tokens may come next in one answer.

    The mask is written when a token has been taken, for the one after it: the sequence does not run ahead, so no step
    in flight reads it then. What the grammar allows depends on the answer's tokens alone, so preemption changes
    nothing here.
    """

    def __init__(self, matcher: Matcher, vocab_size: int, stop_ids: Iterable[int], min_tokens: int) -> None:
        """`stop_ids` may come wherever the text is complete; `vocab_size` is the model's."""
        self.mask = np.zeros(vocab_size // 32 + 1, np.uint32)
        self._matcher = matcher
        self._ends = [(token // 32, np.uint32(1 << token % 32)) for token in stop_ids if token < vocab_size]
        self._min_tokens = min_tokens
        self._count = 0
        self._fill()

    def accept(self, token: int) -> bool:
        """Take a token of the answer; returns whether the answer is complete with it, and nothing more may come.

        RequestError where the grammar cannot go on.
        """
        try:
            self._matcher.accept(token)
            self._count += 1
            if not self._matcher.is_complete:
                self._fill()
                return False
        except DashInferError:
            raise
        except Exception as error:
            raise RequestError(f"the grammar failed after {self._count} tokens: {error!s:.200}") from error
        if self._count < self._min_tokens:
            raise RequestError(
                f"the answer is complete after {self._count} tokens, and min_tokens asks for {self._min_tokens}"
            )
        return True

    def _fill(self) -> None:
        self._matcher.fill_mask(self.mask)
        if self._matcher.is_accepting:
            for word, bit in self._ends:
                self.mask[word] |= bit
