"""Drawn schedules on the CPU with every type of KV cache: company, preemption and prefix hits change no token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from model_folders import tiny_config, write_model_folder

from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.loader import load_weights

BLOCK, BLOCKS = 32, 5  # three sequences that all grow do not fit
TEXT = (np.arange(70) * 37 % 101).tolist()
MOST_TOKENS = 40

# ("submit", tokens of TEXT, another first block?, temperature, tokens to draw), ("cancel", which), ("step", how often)
Action = tuple[Any, ...]
actions = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from([5, 31, 33, 64, 70]),
        st.booleans(),
        st.sampled_from([0.0, 0.8]),
        st.sampled_from([1, 9, MOST_TOKENS]),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("step"), st.integers(1, 40)),
)
# Preemption; then texts of which the third begins as the second and goes on as the first.
LONG: list[Action] = [("submit", 33, False, 0.0, MOST_TOKENS), ("submit", 70, False, 0.8, MOST_TOKENS)]
APART: list[Action] = [("submit", 70, False, 0.8, 9), ("submit", 33, True, 0.0, 1), ("submit", 70, True, 0.8, 9)]
FULL = [*LONG, *LONG, ("step", 300), *(action for each in APART for action in (each, ("step", 60))), ("cancel", 6)]


def prompt(length: int, other: bool) -> list[int]:
    """The beginning of TEXT, or one with another first block and the same second."""
    return ([100 - token for token in TEXT[:BLOCK]] + TEXT[BLOCK:] if other else TEXT)[:length]


def params(temperature: float, max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=temperature, seed=11, max_tokens=max_tokens, ignore_eos=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Any, Program]]]:
    """opened(kv_dtype) → a program on the CPU, and its description; each is made once."""
    config = tiny_config("qwen3", head_dim=16)
    folder = ModelFolder(write_model_folder(tmp_path_factory.mktemp("model"), config, seed=4))
    model = find_model(folder.architecture)
    device = open_device("cpu", threads=2)
    made: list[Any] = []

    @cache
    def opened(kv_dtype: Any) -> tuple[Any, Program]:
        sizes: dict[str, Any] = {"blocks": BLOCKS, "block_tokens": BLOCK}
        sizes["limits"] = Limits(max_tokens=16, max_seqs=3, tail_rows=4, max_logprobs=1)
        config = model.config.from_folder(folder)
        program = build(model.forward, config, device.info, dtype="f32", kv_dtype=kv_dtype, **sizes)
        made.append(device.create(program))
        with folder.open_weights() as weights:
            load_weights(program, weights, made[-1])
        return made[-1], program

    yield opened
    for executable in made:
        executable.close()
    device.close()


@pytest.mark.parametrize("kv_dtype", ["bf16", "f32", "u8", "u4"])
def test_any_schedule(opened: Callable[[str], tuple[Any, Program]], kv_dtype: str) -> None:
    """Submits, cancels and steps in any order: every request's tokens are those of a run by itself."""
    executable, program = opened(kv_dtype)
    happened: Counter[str] = Counter()

    @cache
    def alone(length: int, other: bool, temperature: float) -> list[int]:
        engine = Engine(executable, program, prefix_cache=False)
        tokens = engine.submit(prompt(length, other), params(temperature, MOST_TOKENS)).result().outputs[0].token_ids
        engine.stop()
        return list(tokens)

    @settings(max_examples=settings.default.max_examples // 5)
    @example(schedule=FULL)
    @given(schedule=st.lists(actions, max_size=24))
    def check(schedule: list[Action]) -> None:
        engine = Engine(executable, program)
        jobs: list[tuple[Any, tuple[int, bool, float], int]] = []
        for kind, *details in schedule:
            if kind == "submit":
                length, other, temperature, count = details
                request = engine.submit(prompt(length, other), params(temperature, count))
                jobs.append((request, (length, other, temperature), count))
            elif kind == "cancel" and details[0] < len(jobs):
                jobs[details[0]][0].cancel()
            elif kind == "step":
                for _ in range(details[0]):
                    engine.step()
        while engine.step():
            pass
        metrics = engine.metrics()
        assert metrics["kv_blocks_used"] == 0
        happened.update(preemptions=metrics["preemptions"], hits=metrics["prefix_hit_tokens"])
        engine.stop()
        for request, asked, count in jobs:
            tokens = request.output().outputs[0].token_ids
            assert request.status == "finished" or (request.status == "cancelled" and len(tokens) <= count)
            assert tokens == alone(*asked)[: len(tokens) if request.status == "cancelled" else count]

    check()
    assert happened["preemptions"] and happened["hits"]
