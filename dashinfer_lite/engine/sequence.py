"""A sequence: one answer of a request, as the engine sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from dashinfer_lite.engine.draw import Draw
    from dashinfer_lite.engine.pooling import Pooling
    from dashinfer_lite.engine.positions import Positions
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.engine.sample import Sample


class Sequence:
    """Private to the engine's owner.

    There is no prefill and no decode: a sequence has `total` tokens, `computed` of them are in the KV cache once the
    submitted steps are done, and it catches up with the rest. When it has caught up, the step draws its next token.
    """

    def __init__(
        self,
        request: Request,
        sample: Sample,
        draw: Draw,
        order: tuple[int, int, int],
        max_total: int,
        salt: Hashable,
        span: int = 0,
        adapter: int = 0,
        positions: Positions | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self.request = request
        self.sample = sample
        self.draw = draw
        self.order = order  # (priority, arrival, index): who goes first
        self.max_total = max_total  # tokens at which it ends
        self.salt = salt
        self.span = span  # the first so many tokens see each other, so one step computes them together
        self.adapter = adapter
        self.positions = positions  # None: tokens are numbered
        self.pooling = pooling  # makes a vector of the prompt; then no token is drawn

        self.tokens = list(request.prompt_token_ids)  # the known ones
        self.prompt_len = len(self.tokens)
        self.pending = 0  # tokens drawn by steps in flight
        self.computed = 0
        self.scored = 0  # prompt tokens that got, or will get, their log probability, or a place in the vector
        self.cached_tokens = 0
        self.blocks: list[int] = []
        self.registered = 0  # full blocks that are in the prefix cache
        self.prefix: Hashable = salt
        self.slot = -1  # where the device keeps the last token it drew for this sequence; -1: not running
        self.last_step = -1  # number of the last step that computes it
        self.epoch = 0  # preemptions; a chunk of an earlier epoch says nothing about the present blocks
        self.followers: list[Sequence] = []  # the other answers, until the prompt is in the cache
        self.started = False
        self.done = False

    @property
    def total(self) -> int:
        return len(self.tokens) + self.pending

    @property
    def is_ready(self) -> bool:
        """Whether there is something to compute that depends on no result the host still waits for."""
        total = self.total
        if self.pending and (self.draw.needs_host or self.computed + 1 < total):
            return False
        return self.computed < total < self.max_total

    @property
    def scores(self) -> bool:
        """Whether prompt tokens are still to be scored."""
        return self.draw.scores_prompt and self.scored < self.prompt_len - 1

    @property
    def prefix_limit(self) -> int:
        """How many tokens may come from the prefix cache: those that are still to be scored or pooled are computed."""
        pools_all = self.pooling is not None and self.pooling.takes_all
        return self.scored if self.scores or pools_all else self.prompt_len + self.max_total
