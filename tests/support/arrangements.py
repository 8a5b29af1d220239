"""Texts through an executable in any arrangement: which tokens of which text make up a step is the test's to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from graphs import Weights
from model_folders import tiny_config
from one_op import Span, fill_step

from dashinfer_lite.devices.step import Step
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights.loader import load_weights

Array = np.ndarray


@dataclass
class Text:
    """Tokens, the blocks they live in, how many are in the cache, and the logits of each row that was asked for."""

    tokens: list[int]
    blocks: list[int]
    done: int = 0
    logits: dict[int, Array] = field(default_factory=dict)

    def bits(self) -> Array:
        """The logits of all rows so far, in order, as integers."""
        return np.stack([self.logits[at] for at in sorted(self.logits)]).view(np.uint32)


class Runner:
    """An executable with a step; `run` takes pairs of (text, tokens to add)."""

    def __init__(self, executable: Any, program: Program) -> None:
        self.executable, self.program = executable, program
        limits = program.limits
        self.step = Step(limits, program.kv.blocks, vocab_size=program.vocab_size, keep_logits=True)

    def run(self, *work: tuple[Text, int], wanted: Sequence[int] | None = None) -> None:
        """One step. A text's blocks are cleared when it begins; `wanted` positions get logits (None: all)."""
        spans, clear, rows = [], [], []
        for text, count in work:
            at = range(text.done, text.done + count)
            asked = [i for i in range(count) if wanted is None or at[i] in wanted]
            spans.append(Span(count, text.done, text.tokens[at.start : at.stop], text.blocks, asked))
            rows += [(text, at[i]) for i in asked]
            clear += text.blocks if text.done == 0 else []
        self.executable.wait(self.executable.submit(fill_step(self.step, spans, clear)))
        assert self.step.out_logits is not None
        for row, (text, at_token) in enumerate(rows):
            text.logits[at_token] = self.step.out_logits[row].copy()
        for text, count in work:
            text.done += count

    def whole(self, text: Text, chunk: int | None = None, wanted: Sequence[int] | None = None) -> Array:
        """All of a text, `chunk` tokens a step; its bits."""
        while text.done < len(text.tokens):
            self.run((text, min(chunk or len(text.tokens), len(text.tokens) - text.done)), wanted=wanted)
        return text.bits()


@contextmanager
def runner(
    device: Any,
    config: dict[str, Any],
    dtype: Any,
    kv_dtype: Any,
    *,
    tokens: int = 256,
    blocks: int = 16,
    block_tokens: int = 32,
    weights: Weights | None = None,
) -> Iterator[Runner]:
    """A model with made-up weights on a device."""
    model = find_model(config["architectures"][0], config)
    limits = Limits(max_tokens=tokens, tail_rows=24, max_seqs=8, max_logprobs=4)
    program = build(
        model.forward,
        model.config.from_dict(config),
        device.info,
        dtype=dtype,
        kv_dtype=kv_dtype,
        limits=limits,
        blocks=blocks,
        block_tokens=block_tokens,
    )
    executable = device.create(program)
    load_weights(program, (weights or Weights()).provide(program), executable)
    yield Runner(executable, program)
    executable.close()


def small(family: str, **changes: Any) -> dict[str, Any]:
    """A tiny configuration whose widths fill no cell and whose angles are powers of two."""
    sizes = {"hidden_size": 72, "intermediate_size": 136, "vocab_size": 131, "head_dim": 40, "rope_theta": 65536.0}
    return tiny_config(family, **(sizes | changes))
