"""The arrays of one engine step, allocated once, filled in place; they mirror `di_step` and `di_sample` in C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dashinfer_lite.graph.program import Limits

HIDDEN = 2  # di_sample.flags: the row's hidden state is wanted, and no token
RAW_LOGPROB = 1  # di_sample.flags: report logprob, rank and the best alternatives of the raw distribution
STATUS_OK, STATUS_NAN, STATUS_EMPTY = 0, 1, 2
NO_SWAPS = np.zeros((0, 2), np.int32)

SAMPLE_DTYPE = np.dtype(
    [
        ("seed", "<u8"),
        ("history", "<u8"),
        ("bias_ids", "<u8"),
        ("bias_values", "<u8"),
        ("banned_ids", "<u8"),
        ("mask", "<u8"),
        ("history_len", "<i4"),
        ("prompt_len", "<i4"),
        ("n_bias", "<i4"),
        ("n_banned", "<i4"),
        ("sample_index", "<u4"),
        ("position", "<u4"),
        ("temperature", "<f4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("top_k", "<i4"),
        ("no_repeat_ngram", "<i4"),
        ("n_top", "<i4"),
        ("target", "<i4"),
        ("slot", "<i4"),
        ("flags", "<u4"),
    ],
    align=True,
)


class Step:
    """One step's inputs and outputs.

    Set the counts `T`, `B`, `R`, `n_clear`, `n_external` and the first so many entries of the arrays. `tokens[i] = -1 -
    s` takes the last token that the
    device drew for sequence slot s. Objects whose addresses stand in `sample` must be kept in `keep` until the step is
    done.
    """

    def __init__(
        self,
        limits: Limits,
        max_blocks: int,
        max_rows: int | None = None,
        vocab_size: int = 0,
        keep_logits: bool = False,
    ) -> None:
        """Allocate for the limits' tokens and sequences, and `max_rows` logit rows (default: as many as tokens)."""
        tokens, seqs = limits.max_tokens, limits.max_seqs
        rows = max_rows if max_rows is not None else tokens
        self.T = self.B = self.R = self.n_clear = self.n_external = 0
        self.position_rows = 1
        self.max_blocks = max_blocks
        self.max_logprobs = limits.max_logprobs
        self.tokens = np.zeros(tokens, np.int32)
        self.positions = np.zeros((3, tokens), np.int32)  # row r of the used ones is positions[r, :T]
        self.q_offset = np.zeros(seqs + 1, np.int32)
        self.kv_len = np.zeros(seqs, np.int32)
        self.prompt_len = np.zeros(seqs, np.int32)
        self.bidirectional = np.zeros(seqs, np.int32)
        self.adapter = np.zeros(seqs, np.int32)
        self.block_table = np.zeros((seqs, max_blocks), np.int32)
        self.logit_row = np.zeros(rows, np.int32)
        self.sample = np.zeros(rows, SAMPLE_DTYPE)
        self.clear_blocks = np.zeros(seqs * max_blocks if seqs * max_blocks < 1 << 20 else 1 << 20, np.int32)
        self.swap_out = NO_SWAPS  # [n, 2] int32 (block, host block): copied out before the step, and
        self.swap_in = NO_SWAPS  # [n, 2] then in, before blocks are cleared; made anew for a step that swaps
        self.external_row = np.zeros(tokens, np.int32)
        self.external: np.ndarray | None = None  # [n_external, H] fp32
        self.out_token = np.zeros(rows, np.int32)
        self.out_status = np.zeros(rows, np.int32)
        self.out_logprob = np.zeros(rows, np.float32)
        self.out_rank = np.zeros(rows, np.int32)
        self.out_top_ids = np.zeros((rows, limits.max_logprobs), np.int32)
        self.out_top_logprobs = np.zeros((rows, limits.max_logprobs), np.float32)
        self.out_logits: np.ndarray | None = np.zeros((rows, vocab_size), np.float32) if keep_logits else None
        self.out_hidden: np.ndarray | None = None  # [rows, H] fp32, for steps whose rows' hidden states are wanted
        self.keep: list[object] = []
        self.native: Any = None  # the C struct over these arrays, made by the first native device that runs the step
