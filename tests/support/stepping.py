"""Sequences through an executable without an engine: the smallest loop that prefills, chunks, batches and decodes."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.devices.step import Step
from dashinfer_lite.engine.positions import Positions, layout_of
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.loader import load_weights


@dataclass
class Sequence:
    """A prompt, what was drawn after it, and the logits of every position so far."""

    prompt: list[int]
    slot: int
    blocks: list[int]
    length: int = 0
    drawn: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    bidirectional: int = 0
    positions: Positions | None = None

    @property
    def pending(self) -> list[int]:
        """Tokens whose cache entries are missing."""
        return [*self.prompt, *self.drawn][self.length :]

    def chunk(self, size: int | None) -> list[int]:
        """Of these the next `size`, or as many as see each other."""
        return self.pending if size is None else self.pending[: max(size, self.bidirectional - self.length)]


class Loop:
    """Owns a step and the KV blocks of an executable; greedy drawing, logits of every row."""

    def __init__(self, executable: Any, program: Program, seed: int = 0) -> None:
        self.executable = executable
        self.program = program
        self.free = np.random.default_rng(seed).permutation(program.kv.blocks).tolist()
        self.step_arrays = Step(program.limits, program.kv.blocks, vocab_size=program.vocab_size, keep_logits=True)
        self.slots = 0

    def add(self, prompt: Seq[int], tokens: int) -> Sequence:
        """A sequence with blocks for so many tokens."""
        count = -(-tokens // self.program.kv.block_tokens)
        blocks, self.free = self.free[:count], self.free[count:]
        assert len(blocks) == count, "the test's program has too few blocks"
        self.slots += 1
        tokens_of = [int(token) for token in prompt]
        span, positions = layout_of(self.program, tokens_of)
        return Sequence(tokens_of, self.slots - 1, blocks, bidirectional=span, positions=positions)

    def generate(
        self, prompts: Seq[Seq[int]], new_tokens: int, *, chunk: int | None = None, on_device: bool = False
    ) -> list[Sequence]:
        """All prompts together, `chunk` tokens of each a step, but bidirectional spans as a whole.

        `on_device` feeds the last token from the device.
        """
        sequences = [self.add(prompt, len(prompt) + new_tokens) for prompt in prompts]
        while live := [s for s in sequences if len(s.drawn) < new_tokens]:
            self.step([(s, s.chunk(chunk)) for s in live], on_device=on_device)
        return sequences

    def step(
        self,
        work: Seq[tuple[Sequence, list[int]]],
        *,
        on_device: bool = False,
        external: dict[int, np.ndarray] | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        """One step over the given tokens of the given sequences; a sequence that catches up draws its next token.

        `external` maps rows of the step to hidden states; `positions` [rows, T] replace the running numbers.
        """
        step = self.step_arrays
        step.T, step.B, at = 0, len(work), 0
        step.sample[:] = np.zeros((), step.sample.dtype)
        step.n_clear = 0
        for b, (sequence, tokens) in enumerate(work):
            if sequence.length == 0:
                blocks = slice(step.n_clear, step.n_clear + len(sequence.blocks))
                step.clear_blocks[blocks] = sequence.blocks
                step.n_clear = blocks.stop
            rows = slice(at, at + len(tokens))
            step.tokens[rows] = tokens
            if on_device and sequence.drawn:
                step.tokens[rows] = -1 - sequence.slot
            step.positions[0, rows] = np.arange(sequence.length, sequence.length + len(tokens))
            if sequence.positions is not None:
                step.positions[:2, rows] = sequence.positions.at(sequence.length, len(tokens))
            step.q_offset[b : b + 2] = rows.start, rows.stop
            step.kv_len[b] = sequence.length + len(tokens)
            step.prompt_len[b] = len(sequence.prompt)
            step.bidirectional[b] = sequence.bidirectional
            step.block_table[b, : len(sequence.blocks)] = sequence.blocks
            step.sample["slot"][rows.start : rows.stop] = -1
            step.sample["slot"][rows.stop - 1] = sequence.slot
            at = rows.stop
        step.T = step.R = at
        step.logit_row[:at] = np.arange(at)
        for name, value in {"top_p": 1, "repetition_penalty": 1, "target": -1}.items():
            step.sample[name][:at] = value
        step.position_rows = (1 if self.program.prefix is None else 2) if positions is None else len(positions)
        if positions is not None:
            step.positions[: len(positions), :at] = positions
        step.n_external = len(external or {})
        if external:
            step.external_row[: len(external)] = sorted(external)
            step.external = np.stack([external[row] for row in sorted(external)]).astype(np.float32)
        self.executable.wait(self.executable.submit(step))
        for b, (sequence, tokens) in enumerate(work):
            assert step.out_logits is not None
            sequence.logits += [row.copy() for row in step.out_logits[step.q_offset[b] : step.q_offset[b + 1]]]
            sequence.length += len(tokens)
            if not sequence.pending:
                sequence.drawn.append(int(step.out_token[step.q_offset[b + 1] - 1]))


def load(
    folder: Path,
    device: Any | None = None,
    *,
    dtype: Any = "f32",
    kv_dtype: Any = "f32",
    limits: Limits | None = None,
    blocks: int = 16,
    block_tokens: int = 32,
    passes: Seq[str] | None = None,
    host_blocks: int = 0,
) -> tuple[Any, Program]:
    """A model folder's executable with its weights, and the program."""
    device = device or ReferenceDevice()
    model_folder = ModelFolder(folder)
    model = find_model(model_folder.architecture, model_folder.config)
    program = build(
        model.forward,
        model.config.from_folder(model_folder),
        device.info,
        dtype=dtype,
        kv_dtype=kv_dtype,
        limits=limits or Limits(max_tokens=256, tail_rows=16, max_seqs=8),
        blocks=blocks,
        block_tokens=block_tokens,
        passes=passes,
        host_blocks=host_blocks,
    )
    executable = device.create(program)
    with model_folder.open_weights() as reader:
        load_weights(program, reader, executable)
    return executable, program
