"""A plan in the form of one device step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dashinfer_lite.devices.step import NO_SWAPS, Step
from dashinfer_lite.engine.draw import pool_record, score_record

if TYPE_CHECKING:
    from dashinfer_lite.engine.host_blocks import Swap
    from dashinfer_lite.engine.scheduler import Chunk
    from dashinfer_lite.engine.sequence import Sequence
    from dashinfer_lite.graph.program import Limits

RawTop = tuple[list[int], list[float]]  # ids and log probabilities of the most likely tokens, best first


_NO_TOP: RawTop = ([], [])


class Drawn(NamedTuple):
    """What one logit row gave: a token drawn, or one that was scored."""

    seq: Sequence
    scored: bool
    token: int
    status: int
    logprob: float
    rank: int
    top: RawTop


class Pooled(NamedTuple):
    """The hidden states [n,H] of some of a prompt's tokens, in their order."""

    seq: Sequence
    rows: np.ndarray


class Batch:
    """The arrays of one step in flight, filled in place.

    A batch remembers which sequence filled each of its rows last: while sequences stay in their rows, a step writes a
    handful of numbers a sequence and only the new entries of the block table.
    """

    def __init__(self, limits: Limits, max_blocks: int, max_context: int, position_rows: int, hidden_size: int) -> None:
        self.step = Step(limits, max_blocks, max_rows=limits.max_tokens)
        self.step.position_rows = position_rows
        self.plan: list[Chunk] = []
        self._rows: list[tuple[Sequence, bool]] = []  # of each logit row: whose it is, and whether it scores
        self.swapped_in = 0  # blocks that come back from host memory
        self.pooled_rows: list[tuple[Sequence, int, int]] = []  # rows [first, after) that give hidden states alone
        self._hidden: np.ndarray | None = None  # [rows, H], once somebody asked for it
        self._hidden_size = hidden_size
        self._counting = np.arange(max(max_context, limits.max_tokens), dtype=np.int32)
        self._seq_rows: list[tuple[Sequence, int] | None] = [None] * limits.max_seqs
        self._blocks_written = [0] * limits.max_seqs
        self._drawing: list[Sequence | None] = [None] * limits.max_tokens
        # Single numbers go through memory views: a step has filled the caches with weights, and NumPy's way to a number
        # touches far more code.
        step, sample = self.step, self.step.sample
        self._token, self._positions = step.tokens.data, [row.data for row in step.positions]
        self._q_offset, self._kv_len, self._logit_row = step.q_offset.data, step.kv_len.data, step.logit_row.data
        self._out_token, self._out_status = step.out_token.data, step.out_status.data
        self._position, self._slot = sample["position"].data, sample["slot"].data
        self._history_len, self._n_banned = sample["history_len"].data, sample["n_banned"].data
        self._banned_ids, self._target = sample["banned_ids"].data, sample["target"]

    def fill(self, plan: list[Chunk], swaps_out: list[Swap]) -> None:
        """Write a step that computes the plan's chunks, which are already counted as computed.

        `swaps_out` are copied to host memory before.
        """
        step = self.step
        self.plan = plan
        self._rows.clear()
        self.pooled_rows.clear()
        step.keep.clear()
        step.out_hidden = None
        step.B, step.n_clear = len(plan), 0
        swaps_in: list[Swap] = []
        end = 0
        for b, chunk in enumerate(plan):
            first, end = end, end + chunk.count
            if chunk.swaps:
                swaps_in += chunk.swaps
            self._fill_tokens(chunk, first, end)
            self._q_offset[b + 1] = end
            self._kv_len[b] = chunk.start + chunk.count
            self._fill_sequence(b, chunk)
            if chunk.seq.pooling is not None:
                self._pool(chunk, chunk.seq.pooling.takes_all, first)
                continue
            if chunk.seq.scores:
                self._score(chunk, first)
            if chunk.draws:
                self._draw(chunk.seq, end - 1)
        step.T, step.R = end, len(self._rows)
        self.swapped_in = len(swaps_in)
        step.swap_out = np.array(swaps_out, np.int32) if swaps_out else NO_SWAPS
        step.swap_in = np.array(swaps_in, np.int32) if swaps_in else NO_SWAPS

    def results(self) -> list[Drawn]:
        """What the step gave, once the device is done with it; one entry a logit row."""
        step = self.step
        rows = step.R
        tokens, statuses = self._out_token[:rows].tolist(), self._out_status[:rows].tolist()
        results = []
        for row, (seq, scored) in enumerate(self._rows):
            if seq.pooling is not None:
                continue
            n_top = seq.draw.n_top_prompt if scored else seq.draw.n_top
            logprob, rank, top = 0.0, 0, _NO_TOP
            if scored or seq.draw.reports:
                logprob, rank = float(step.out_logprob[row]), int(step.out_rank[row])
                top = step.out_top_ids[row, :n_top].tolist(), step.out_top_logprobs[row, :n_top].tolist()
            results.append(Drawn(seq, scored, tokens[row], statuses[row], logprob, rank, top))
        return results

    def pooled(self) -> list[Pooled]:
        """The hidden states that the step gave, where it has such rows."""
        assert self._hidden is not None
        return [Pooled(seq, self._hidden[first:after]) for seq, first, after in self.pooled_rows]

    def forget(self) -> None:
        """Drop the references to sequences, so that an idle engine holds on to nobody's data."""
        self.plan = []
        self._rows.clear()
        self.pooled_rows.clear()
        self.step.keep.clear()
        self._seq_rows = [None] * len(self._seq_rows)
        self._drawing = [None] * len(self._drawing)

    def _fill_tokens(self, chunk: Chunk, first: int, end: int) -> None:
        step, seq, start = self.step, chunk.seq, chunk.start
        if chunk.count == 1:
            # A token that the host does not know yet is the last one drawn for the slot.
            self._token[first] = seq.tokens[start] if start < len(seq.tokens) else -1 - seq.slot
            for positions in self._positions:
                positions[first] = start
        else:
            step.tokens[first:end] = seq.tokens[start : start + chunk.count]
            step.positions[: step.position_rows, first:end] = self._counting[start : start + chunk.count]
        if seq.positions is not None:
            step.positions[: step.position_rows, first:end] = seq.positions.at(start, chunk.count)

    def _fill_sequence(self, b: int, chunk: Chunk) -> None:
        step, seq = self.step, chunk.seq
        if self._seq_rows[b] != (seq, seq.epoch):
            self._seq_rows[b] = (seq, seq.epoch)
            self._blocks_written[b] = 0
            step.prompt_len[b] = seq.prompt_len
            step.bidirectional[b] = seq.span
            step.adapter[b] = seq.adapter
        written, count = self._blocks_written[b], len(seq.blocks)
        if written < count:
            step.block_table[b, written:count] = seq.blocks[written:]
            self._blocks_written[b] = count
        if chunk.fresh:
            n_clear = step.n_clear + len(chunk.fresh)
            step.clear_blocks[step.n_clear : n_clear] = chunk.fresh
            step.n_clear = n_clear

    def _score(self, chunk: Chunk, first: int) -> None:
        """Score the prompt tokens that follow the chunk's, each in the row of the token before it."""
        seq, step = chunk.seq, self.step
        begin, end = seq.scored, min(chunk.start + chunk.count, seq.prompt_len - 1)
        if end <= begin:  # computed anew after a preemption
            return
        row = len(self._rows)
        after = row + end - begin
        step.logit_row[row:after] = self._counting[first + begin - chunk.start : first + end - chunk.start]
        step.sample[row:after] = score_record(seq.draw.n_top_prompt)
        self._target[row:after] = seq.tokens[begin + 1 : end + 1]
        self._drawing[row:after] = [None] * (end - begin)
        self._rows += [(seq, True)] * (end - begin)
        seq.scored = end

    def _pool(self, chunk: Chunk, takes_all: bool, first: int) -> None:
        """Ask for the hidden states of the chunk's tokens, or of the prompt's last one."""
        seq, step = chunk.seq, self.step
        end = chunk.start + chunk.count
        begin = seq.scored if takes_all else seq.prompt_len - 1
        if end <= begin:  # computed anew after a preemption, or not there yet
            return
        if self._hidden is None:
            self._hidden = np.zeros((len(step.logit_row), self._hidden_size), np.float32)
        step.out_hidden = self._hidden
        row = len(self._rows)
        after = row + end - begin
        step.logit_row[row:after] = self._counting[first + begin - chunk.start : first + end - chunk.start]
        step.sample[row:after] = pool_record()
        self._drawing[row:after] = [None] * (end - begin)
        self._rows += [(seq, True)] * (end - begin)
        self.pooled_rows.append((seq, row, after))
        seq.scored = end

    def _draw(self, seq: Sequence, token_row: int) -> None:
        """Draw the token after a sequence's last one, which is already counted as pending."""
        step, draw, row = self.step, seq.draw, len(self._rows)
        self._rows.append((seq, False))
        self._logit_row[row] = token_row
        if self._drawing[row] is not seq:
            self._drawing[row] = seq
            step.sample[row] = draw.record
        position = seq.total - 1
        self._position[row] = position
        self._slot[row] = seq.slot
        if draw.reads_history:
            self._history_len[row] = draw.history_len(seq.tokens)
        if not draw.has_static_bans:
            banned = draw.banned(seq.tokens, position - seq.prompt_len)
            step.keep.append(banned)
            self._banned_ids[row] = banned.ctypes.data
            self._n_banned[row] = len(banned)
