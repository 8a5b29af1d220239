"""A device whose answers come one or two steps late, with the last tokens fed on the device.

It wraps any executable. Until a ticket has been waited for, the step's outputs are scrambled; whoever touches the
inputs in the meantime, or clears or copies a block that a step in flight uses, is caught.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dashinfer_lite.devices.base import Executable
from dashinfer_lite.devices.step import Step

OUTPUTS = ("out_token", "out_status", "out_logprob", "out_rank", "out_top_ids", "out_top_logprobs")


@dataclass
class Late:
    """A step on its way."""

    ticket: int
    step: Step
    inputs: list[Any]
    outputs: list[np.ndarray]
    hidden: np.ndarray | None
    blocks: set[int]
    error: Exception | None


class LateExecutable:
    """`delay` steps may be submitted before the results of the first are asked for."""

    def __init__(self, inner: Executable, delay: int, block_tokens: int, vocab_size: int = 0) -> None:
        self.inner = inner
        self.info = replace(inner.info, async_depth=delay + 1)
        self.most_in_flight = 0
        self._block_tokens = block_tokens
        self._vocab_size = vocab_size  # of masks, which are looked at where it is given
        self._flying: deque[Late] = deque()
        self._tickets = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, step: Step) -> int:
        assert len(self._flying) < self.info.async_depth, "too many steps in flight"
        assert all(late.step is not step for late in self._flying), "the step's arrays are in use"
        cleared = set(step.clear_blocks[: step.n_clear].tolist())
        swapped = {int(block) for swaps in (step.swap_out, step.swap_in) for block, _ in swaps}
        for late in self._flying:
            assert not cleared & late.blocks, "a block is reused before the step that writes it is done"
            assert not swapped & late.blocks, "a block is copied before the step that uses it is done"
        error = None
        inner_ticket = self.inner.submit(step)
        try:
            self.inner.wait(inner_ticket)
        except Exception as late_error:
            error = late_error
        outputs = [getattr(step, name)[: step.R].copy() for name in OUTPUTS]
        for name in OUTPUTS:
            getattr(step, name)[: step.R] = -999
        hidden = None if step.out_hidden is None else step.out_hidden[: step.R].copy()
        if step.out_hidden is not None:
            step.out_hidden[: step.R] = -999
        self._tickets += 1
        self._flying.append(Late(self._tickets, step, self._inputs(step), outputs, hidden, self._blocks(step), error))
        self.most_in_flight = max(self.most_in_flight, len(self._flying))
        return self._tickets

    def wait(self, ticket: int) -> None:
        late = self._flying.popleft()
        assert late.ticket == ticket, "waited for out of order"
        for before, after in zip(late.inputs, self._inputs(late.step), strict=True):
            assert np.array_equal(before, after), "an input was touched while its step was in flight"
        if late.error is not None:
            raise late.error
        for name, values in zip(OUTPUTS, late.outputs, strict=True):
            getattr(late.step, name)[: late.step.R] = values
        if late.hidden is not None:
            late.step.out_hidden[: late.step.R] = late.hidden

    def _inputs(self, step: Step) -> list[Any]:
        return _inputs(step, self._vocab_size)

    def _blocks(self, step: Step) -> set[int]:
        used = (-(-int(step.kv_len[b]) // self._block_tokens) for b in range(step.B))
        return {int(block) for b, count in enumerate(used) for block in step.block_table[b, :count]}


def _inputs(step: Step, vocab_size: int) -> list[Any]:
    """Copies of everything that a device may still read."""
    b, r = step.B, step.R
    copies: list[Any] = [step.T, b, r, step.n_clear, step.n_external, step.position_rows]
    copies += [step.tokens[: step.T].copy(), step.positions[:, : step.T].copy(), step.q_offset[: b + 1].copy()]
    copies += [array[:b].copy() for array in (step.kv_len, step.prompt_len, step.bidirectional, step.adapter)]
    copies += [step.block_table[:b].copy(), step.logit_row[:r].copy(), step.clear_blocks[: step.n_clear].copy()]
    copies += [step.sample[:r].tobytes(), step.swap_out.copy(), step.swap_in.copy()]
    for record in step.sample[:r]:
        for address, count in (("history", "history_len"), ("banned_ids", "n_banned"), ("bias_ids", "n_bias")):
            if record[address] and record[count]:
                copies.append(ctypes.string_at(int(record[address]), 4 * int(record[count])))
        if record["mask"]:
            copies.append(ctypes.string_at(int(record["mask"]), 4 * -(-vocab_size // 32)))
    return copies
