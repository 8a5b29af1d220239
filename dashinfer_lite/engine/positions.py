"""Where a prompt's tokens stand, and which of them see each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.graph.program import PrefixRule, Program


class Positions(NamedTuple):
    """Positions of a sequence whose tokens are not simply numbered.

    `prompt` [rows, prompt tokens] int32; in row r each later token stands `advance[r]` behind the one before it.
    """

    prompt: np.ndarray
    advance: tuple[int, ...]

    def at(self, start: int, count: int) -> np.ndarray:
        """[rows, count]: the positions of the tokens [start, start + count)."""
        last = self.prompt.shape[1] - 1
        tokens = np.arange(start, start + count)
        beyond = np.maximum(tokens - last, 0)
        found: np.ndarray = self.prompt[:, np.minimum(tokens, last)] + np.multiply.outer(self.advance, beyond)
        return found


class Layout(NamedTuple):
    """The first `span` tokens of a prompt see each other; `positions` None: tokens are numbered from 0 on."""

    span: int = 0
    positions: Positions | None = None

    @property
    def gap(self) -> int:
        """What the positions behind the span depend on besides its tokens."""
        return -1 if self.positions is None else int(self.positions.prompt[0, -1])


def layout_of(program: Program, prompt: Sequence[int], span: int = 0) -> Layout:
    """How a model wants its prompt; `span` is the caller's, for models that leave it to the caller.

    RequestError for a prompt without the tokens that the model's rule looks for.
    """
    return Layout(span) if program.prefix is None else _prefix_layout(program.prefix, list(prompt))


def _prefix_layout(rule: PrefixRule, prompt: list[int]) -> Layout:
    gap = next((token for token in rule.gaps if token in prompt), None)
    if rule.begin not in prompt or gap is None:
        wanted = " or ".join(map(str, rule.gaps))
        raise RequestError(
            f"the prompt must hold token {wanted} (the gap that the answer fills) and token {rule.begin} (where the "
            "answer begins); the model's chat format and its tokenizer add both"
        )
    span = prompt.index(rule.begin)
    positions = np.zeros((2, len(prompt)), np.int32)
    positions[0] = np.arange(len(prompt))
    positions[0, span:] = prompt.index(gap)
    positions[1, span:] = np.arange(1, len(prompt) - span + 1)
    return Layout(span, Positions(positions, (0, 1)))
