"""Device steps without an engine, and memory that is really there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dashinfer_lite.devices.step import Step
from dashinfer_lite.engine.draw import Draw
from dashinfer_lite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from work import Load

    from dashinfer_lite.devices import Executable
    from dashinfer_lite.graph.program import Program

GREEDY = SamplingParams(temperature=0)
MOST_ROWS = 64  # of logits
FILL_BLOCKS = 64  # written at a time


def step_of(program: Program, load: Load, params: SamplingParams = GREEDY) -> Step:
    """A step of this load; each sequence has blocks of its own and asks for its last row's token."""
    step = Step(program.limits, blocks_of(program, load) // load.sequences, max_rows=MOST_ROWS)
    step.position_rows = program.position_rows
    step.T, step.B, step.R = load.rows, load.sequences, load.sequences
    draw = Draw(params, 0, 7, (), [], 1, load.context + 1)
    step.keep = [draw]
    step.sample[:] = draw.record
    step.sample["slot"] = -1
    step.tokens[: load.rows] = np.arange(100, 100 + load.rows) % program.vocab_size
    for b in range(load.sequences):
        first, end = b * load.tokens, (b + 1) * load.tokens
        step.positions[:, first:end] = np.arange(load.context - load.tokens, load.context)
        step.q_offset[b + 1] = end
        step.kv_len[b] = load.context
        step.block_table[b] = range(b * step.max_blocks, (b + 1) * step.max_blocks)
        step.logit_row[b] = end - 1
    return step


def blocks_of(program: Program, load: Load) -> int:
    """Blocks of the KV cache that a load needs."""
    return load.sequences * -(-load.context // program.kv.block_tokens)


def fill_cache(executable: Executable, blocks: int) -> None:
    """Write blocks, with small numbers in every type of cache: memory that nobody wrote is one page of zeros.

    All of it would be read from a cache of the processor.
    """
    if not blocks:
        return
    size = len(executable.kv_read([0])[0])
    block = np.random.Generator(np.random.Philox(7)).integers(0x3C, 0x3E, size, np.uint8).tobytes()
    for first in range(0, blocks, FILL_BLOCKS):
        ids = range(first, min(first + FILL_BLOCKS, blocks))
        executable.kv_write(ids, [block] * len(ids))
