"""A real model on devices: late answers, chunks, preemption and prefix hits change no bit, whatever the KV cache is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late import LateExecutable
from safetensors.numpy import load_file

from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.model_defs import find_model
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


def executable(device: Any, kv_dtype: Any, limits: Limits, blocks: int, block_tokens: int) -> tuple[Any, Program]:
    folder = ModelFolder(GOLDEN)
    model = find_model(folder.architecture, folder.config)
    config = model.config.from_folder(folder)
    sizes: dict[str, Any] = {"limits": limits, "blocks": blocks, "block_tokens": block_tokens}
    program = build(model.forward, config, device.info, dtype="f32", kv_dtype=kv_dtype, **sizes)
    made = device.create(program)
    with folder.open_weights() as weights:
        load_weights(program, weights, made)
    return made, program


@pytest.fixture(scope="module")
def alone() -> Iterator[Callable[[Any, str], list[RequestOutput]]]:
    """alone(device, kv_dtype) → each prompt by itself, in one chunk, on an engine of its own."""
    known: dict[tuple[str, str], list[RequestOutput]] = {}

    def alone(device: Any, kv_dtype: str) -> list[RequestOutput]:
        if (device.info.name, kv_dtype) not in known:
            limits = Limits(max_tokens=128, max_seqs=1, tail_rows=8, max_logprobs=4)
            made, program = executable(device, kv_dtype, limits, 8, 32)
            outputs = known[device.info.name, kv_dtype] = []
            for prompt in prompts():
                engine = Engine(made, program, prefix_cache=False)
                outputs.append(engine.submit(prompt, PARAMS).result())
                engine.stop()
            made.close()
        return known[device.info.name, kv_dtype]

    yield alone


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "u8", "u4"])
@pytest.mark.parametrize(("name", "delay"), [("reference", 0), ("reference", 2), ("cpu", 0), ("cpu", 1)])
def test_same_bits(alone: Callable[[Any, str], list[RequestOutput]], name: str, delay: int, kv_dtype: str) -> None:
    """Small chunks, a pool that forces preemption, a second round from the prefix cache: equal log probabilities."""
    device = open_device(name)
    size, blocks = (4, 28) if name == "reference" else (32, 5)
    limits = Limits(max_tokens=8, max_seqs=3, tail_rows=2, max_logprobs=4)
    made, program = executable(device, kv_dtype, limits, blocks, size)
    late = LateExecutable(made, delay, size) if delay else made
    engine = Engine(late, program)
    expected = alone(device, kv_dtype)
    for number in range(2):
        requests = [engine.submit(prompt, PARAMS) for prompt in prompts()]
        for i, request in enumerate(requests):
            out = request.result()
            if kv_dtype == "f32":
                assert out.outputs[0].token_ids == golden()[f"p{i}.greedy_ids"].tolist()[:24]
            assert _numbers(out) == _numbers(expected[i])
            assert number == 0 or len(prompts()[i]) <= size or out.usage.cached_tokens > 0
    assert engine.metrics()["preemptions"] > 0
    engine.stop()
    made.close()
    device.close()


def _numbers(out: RequestOutput) -> list[tuple[int, bytes]]:
    assert out.outputs[0].logprobs is not None
    entries = [item for position in out.outputs[0].logprobs for item in position.items()]
    return [(token, np.float32(entry.logprob).tobytes()) for token, entry in entries]
