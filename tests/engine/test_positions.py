"""Prompts that a model lays out by a rule of its own: positions on two axes, a context that sees itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import fake_program
from safetensors.numpy import load_file
from stepping import load

from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.engine.positions import Layout, layout_of
from dashinfer_lite.errors import RequestError
from dashinfer_lite.graph.program import Limits, PrefixRule
from dashinfer_lite.loading import Options, load_model
from dashinfer_lite.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
GMASK, MASK, BEGIN = 17, 16, 20


def layout(prompt: Sequence[int]) -> Layout:
    program = fake_program()
    object.__setattr__(program, "prefix", PrefixRule(BEGIN, (GMASK, MASK)))
    return layout_of(program, prompt)


def test_positions_of_a_prompt_and_its_answer() -> None:
    """Row 0 counts the context and then stays at the gap; row 1 counts from the beginning of the answer."""
    span, positions = layout([5, 6, GMASK, 7, BEGIN, 8])
    assert span == 4 and positions is not None
    assert positions.at(0, 9).tolist() == [[0, 1, 2, 3, 2, 2, 2, 2, 2], [0, 0, 0, 0, 1, 2, 3, 4, 5]]
    for start in range(9):
        assert np.array_equal(positions.at(start, 9 - start), positions.at(0, 9)[:, start:])


@pytest.mark.parametrize(
    ("prompt", "span", "gap"),
    [
        ([MASK, 5, GMASK, BEGIN], 3, 2),  # the one counts before the other, wherever they stand
        ([5, MASK, 6, BEGIN], 3, 1),
        ([GMASK, 5, GMASK, BEGIN, BEGIN], 3, 0),
        ([BEGIN, GMASK], 0, 1),
    ],
)
def test_the_gap_and_the_beginning(prompt: list[int], span: int, gap: int) -> None:
    found = layout(prompt)
    assert (found.span, found.gap) == (span, gap)
    assert found.positions is not None
    assert set(found.positions.at(span, 9)[0].tolist()) == {gap}


@pytest.mark.parametrize("prompt", [[1, 2, 3], [1, GMASK], [BEGIN, 1]])
def test_a_prompt_without_them_is_a_request_error(prompt: list[int]) -> None:
    with pytest.raises(RequestError, match=r"must hold token 17 or 16 .* and token 20"):
        layout(prompt)


def test_other_models_number_their_tokens() -> None:
    assert layout_of(fake_program(), [1, 2], span=1) == Layout(1, None)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_prefix_model_in_an_engine(golden: Path, name: str) -> None:
    """Prompts in steps that hold one span, twice, in a pool that forces preemption: always the golden tokens.

    The last prompt holds the beginning of its answer, so that blocks behind the span can be shared.
    """
    expected = load_file(golden / "chatglm1" / "golden.safetensors")
    prompts = [expected[f"p{i}.input_ids"].tolist() for i in range(3)]
    answers = [expected[f"p{i}.greedy_ids"].tolist() for i in range(3)]
    prompts.append(prompts[1] + answers[1][:20])
    answers.append(answers[1][20:])
    limits = Limits(max_tokens=68, tail_rows=8, max_seqs=4, max_logprobs=4)
    executable, program = load(golden / "chatglm1", open_device(name), limits=limits, blocks=6)
    engine = Engine(executable, program)
    for _ in range(2):
        requests = [engine.submit(prompt, GREEDY) for prompt in prompts]
        for request, answer in zip(requests, answers, strict=True):
            assert request.result().outputs[0].token_ids == answer[:24]
    assert engine.metrics()["preemptions"] > 0
    again = engine.submit(prompts[3], GREEDY).result()
    assert (again.usage.cached_tokens, again.outputs[0].token_ids) == (32, answers[3][:24])
    # Nothing is shared where the gap lies elsewhere behind the span: there the positions are others.
    engine.submit([7] * 40 + [BEGIN] + [8] * 23 + [GMASK], GREEDY).result()
    for tail in ([GMASK], [9, GMASK]):
        out = engine.submit([7] * 40 + [BEGIN] + [8] * 23 + tail, GREEDY).result()
        assert out.usage.cached_tokens == (64 if len(tail) == 1 else 0)
    with pytest.raises(RequestError, match=r"span has 71 tokens; it must fit into a step of 68"):
        engine.submit([5] * 70 + [GMASK, BEGIN], GREEDY)
    engine.stop()
    executable.close()


def test_a_loaded_prefix_model_has_room_for_its_longest_prompt(golden: Path, tmp_path: Path) -> None:
    import shutil

    for file in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(golden / "chatglm1" / file, tmp_path)
    model: Any = load_model(tmp_path, Options(kv_memory="64MB", max_context=600, device="reference"))
    assert model.program.limits.max_tokens == 600
    model.close()
