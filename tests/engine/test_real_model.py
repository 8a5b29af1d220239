"""A real model on the reference device: late answers, chunks, preemption and prefix hits change no bit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashinfer_lite.model_defs import find_model
from late import LateExecutable
from safetensors.numpy import load_file

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.engine import Engine
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.outputs import RequestOutput
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.loader import load_weights

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "qwen2_5"
PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)


@cache
def golden() -> dict[str, Any]:
    return load_file(GOLDEN / "golden.safetensors")


def prompts() -> list[list[int]]:
    return [golden()[f"p{i}.input_ids"].tolist() for i in range(3)]


def executable(limits: Limits, blocks: int, block_tokens: int) -> tuple[Any, Program]:
    folder = ModelFolder(GOLDEN)
    model = find_model(folder.architecture)
    device = ReferenceDevice()
    config = model.config.from_folder(folder)
    sizes: dict[str, Any] = {"limits": limits, "blocks": blocks, "block_tokens": block_tokens}
    program = build(model.forward, config, device.info, dtype="f32", kv_dtype="f32", **sizes)
    made = device.create(program)
    with folder.open_weights() as weights:
        load_weights(program, weights, made)
    return made, program


@pytest.fixture(scope="module")
def alone() -> Iterator[list[RequestOutput]]:
    """Each prompt by itself, in one chunk, on an engine of its own."""
    made, program = executable(Limits(max_tokens=128, max_seqs=1, tail_rows=8, max_logprobs=4), 8, 32)
    outputs = []
    for prompt in prompts():
        engine = Engine(made, program, prefix_cache=False)
        outputs.append(engine.submit(prompt, PARAMS).result())
        engine.stop()
    yield outputs


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_same_bits(alone: list[RequestOutput], delay: int) -> None:
    """Small chunks, a pool that forces preemption, a second round from the prefix cache: equal log probabilities."""
    made, program = executable(Limits(max_tokens=8, max_seqs=3, tail_rows=2, max_logprobs=4), 28, 4)
    late = LateExecutable(made, delay, 4) if delay else made
    engine = Engine(late, program)
    for number in range(2):
        requests = [engine.submit(prompt, PARAMS) for prompt in prompts()]
        for i, request in enumerate(requests):
            out = request.result()
            assert out.outputs[0].token_ids == golden()[f"p{i}.greedy_ids"].tolist()[:24]
            assert _numbers(out) == _numbers(alone[i])
            assert number == 0 or i == 0 or out.usage.cached_tokens > 0
    assert engine.metrics()["preemptions"] > 0
    engine.stop()


def _numbers(out: RequestOutput) -> list[tuple[int, bytes]]:
    assert out.outputs[0].logprobs is not None
    entries = [item for position in out.outputs[0].logprobs for item in position.items()]
    return [(token, np.float32(entry.logprob).tobytes()) for token, entry in entries]
