"""Scores a text with an executable, without an engine: what each position says, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dashinfer_lite.devices.step import Step
from dashinfer_lite.errors import ModelError

if TYPE_CHECKING:
    from dashinfer_lite.devices.base import Executable
    from dashinfer_lite.graph.program import Program

Array = np.ndarray[Any, Any]

LOGIT_BYTES: Final = 64 << 20  # of one step
KEPT_BYTES: Final = 512 << 20  # of the reference's distributions


@dataclass(frozen=True, slots=True)
class TextScore:
    """A model's view of P positions of a text.

    nll        [P] negative log likelihood of the token that follows
    best       [P] the most likely token
    kept       every so-manieth position, of which whole distributions are compared
    logprobs   [kept, V] the reference's distributions; None for other runs
    kl         [kept] divergence KL(reference ‖ this) in nats; None for the reference
    """

    nll: Array
    best: Array
    kept: Array
    logprobs: Array | None = None
    kl: Array | None = None


def windows_of(tokens: Sequence[int], length: int) -> list[list[int]]:
    """A text in windows; a last one of a single token says nothing and is left out."""
    windows = [list(tokens[i : i + length]) for i in range(0, len(tokens), length)]
    return [window for window in windows if len(window) > 1]


def score_text(
    executable: Executable,
    program: Program,
    windows: Sequence[Sequence[int]],
    reference: TextScore | None = None,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> TextScore:
    """Score every token of every window but its first; windows know nothing of each other.

    No engine may use the executable meanwhile: its KV blocks are overwritten. Without a `reference` this run becomes
    one and keeps its distributions, of every position where KEPT_BYTES hold them. ModelError for logits that are no
    numbers.
    """
    total = sum(len(window) - 1 for window in windows)
    every = max(1, -(-total * program.vocab_size * 4 // KEPT_BYTES))
    kept = np.arange(0, total, every)
    nll, best = np.empty(total), np.empty(total, np.int64)
    logprobs = np.empty((len(kept), program.vocab_size), np.float32) if reference is None else None
    divergence = None if reference is None else np.empty(len(kept))
    loop = _Loop(executable, program)
    at = 0
    for window in windows:
        for logits, targets in loop.run(window):
            here = _log_softmax(logits)
            stop = at + len(here)
            nll[at:stop] = -here[np.arange(len(here)), targets]
            best[at:stop] = here.argmax(axis=1)
            first, last = np.searchsorted(kept, (at, stop))
            rows = here[kept[first:last] - at]
            if logprobs is not None:
                logprobs[first:last] = rows
            elif reference is not None and reference.logprobs is not None and divergence is not None:
                divergence[first:last] = _divergence(reference.logprobs[first:last], rows)
            at = stop
            progress(at, total)
    return TextScore(nll, best, kept, logprobs, divergence)


class _Loop:
    """One sequence after the other through an executable, in chunks, with the logits of every row."""

    def __init__(self, executable: Executable, program: Program) -> None:
        self._executable, self._program = executable, program
        limits = program.limits
        self._chunk = max(1, min(limits.max_tokens, LOGIT_BYTES // (4 * program.vocab_size)))
        self._step = Step(limits, program.kv.blocks, self._chunk, program.vocab_size, keep_logits=True)

    def run(self, window: Sequence[int]) -> Iterator[tuple[Array, Array]]:
        """Yield logits [rows, V] and the tokens that follow them; the arrays are overwritten by the next step."""
        count = -(-len(window) // self._program.kv.block_tokens)
        read = len(window) - 1
        for start in range(0, read, self._chunk):
            stop = min(start + self._chunk, read)
            self._fill(window, start, stop, count)
            self._executable.wait(self._executable.submit(self._step))
            logits = self._step.out_logits
            assert logits is not None
            logits = logits[: stop - start]
            if np.isnan(logits).any():
                raise ModelError("the model's logits are not numbers: the weights are broken, or their dtype overflows")
            yield logits, np.asarray(window[start + 1 : stop + 1])

    def _fill(self, window: Sequence[int], start: int, stop: int, blocks: int) -> None:
        step, rows = self._step, stop - start
        step.T, step.B, step.R = rows, 1, rows
        step.n_external, step.n_clear = 0, 0
        if start == 0:
            step.n_clear = blocks
            step.clear_blocks[:blocks] = np.arange(blocks)
        step.tokens[:rows] = window[start:stop]
        step.position_rows = self._program.position_rows
        step.positions[: step.position_rows, :rows] = np.arange(start, stop)
        step.q_offset[:2] = 0, rows
        step.kv_len[0], step.prompt_len[0] = stop, len(window)
        step.block_table[0, :blocks] = np.arange(blocks)
        step.logit_row[:rows] = np.arange(rows)
        sample = step.sample[:rows]
        sample[:] = np.zeros((), sample.dtype)
        sample["top_p"], sample["repetition_penalty"] = 1, 1
        sample["slot"], sample["target"] = -1, -1


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(sums).astype(np.float32), np.float32)


def _divergence(reference: Array, other: Array) -> Array:
    """Σ p (ln p - ln q) of each row; a token that the reference rules out counts nothing."""
    p = np.exp(reference)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (reference - other), 0)
    return np.asarray(terms.sum(axis=1, dtype=np.float64))
