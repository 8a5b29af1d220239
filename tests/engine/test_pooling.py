"""Vectors of prompts: exact over chunks, late answers, preemption and company, whatever the prefix cache knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fake import POISON, hidden, prompt_digest

from dashinfer_lite.engine import Engine
from dashinfer_lite.engine.pooling import normalized
from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.sampling_params import SamplingParams

Make = Callable[..., Engine]


def expected(prompt: list[int], pooling: str) -> list[float]:
    """The vector of a prompt, from its digests alone."""
    states = [hidden(digest) for digest in prompt_digest(prompt)]
    total = np.asarray(states if pooling == "mean" else states[-1:], np.float64)
    return [float(value) for value in (total.sum(0) / len(total)).astype(np.float32)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("length", [1, 3, 4, 15, 16, 17, 50])
def test_vectors(make_engine: Make, pooling: str, length: int) -> None:
    """Prompts shorter and longer than a block and than a step; asked for twice, the second time from the cache."""
    engine = make_engine()
    prompt = [(7 * i) % 60 for i in range(length)]
    for _ in range(2):
        request = engine.submit(prompt, pooling=pooling)
        out = request.result()
        assert request.embedding == expected(prompt, pooling)
        assert (out.usage.prompt_tokens, out.usage.completion_tokens, request.status) == (length, 0, "finished")
    assert (request.cached_tokens > 0) == (pooling == "last" and length > 4)
    while engine.step():
        pass
    assert engine.metrics()["kv_blocks_used"] == 0


def test_company_and_preemption(make_engine: Make) -> None:
    """Among requests that generate, in a pool that is too small for all."""
    engine = make_engine(program={"blocks": 12, "limits": Limits(16, 4, 4, 8)})
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompts = [[(i * j) % 60 for j in range(4 * i + 3)] for i in range(1, 9)]
    writers = [engine.submit(prompt, params, priority=i % 3) for i, prompt in enumerate(prompts)]
    readers = [engine.submit(prompt, pooling=("last", "mean")[i % 2]) for i, prompt in enumerate(prompts)]
    alone = make_engine(max_context=48)  # as much as the small pool holds
    for i, (prompt, writer, reader) in enumerate(zip(prompts, writers, readers, strict=True)):
        assert writer.result().outputs[0].token_ids == alone.submit(prompt, params).result().outputs[0].token_ids
        reader.result()
        assert reader.embedding == expected(prompt, ("last", "mean")[i % 2])
    assert engine.metrics()["preemptions"] > 0


def test_cancelled_and_failed(make_engine: Make) -> None:
    """A cancelled prompt has no vector; states that are no numbers fail their request alone."""
    engine = make_engine()
    cancelled, broken, fine = (engine.submit([5, 6, x], pooling="mean") for x in (1, POISON, 2))
    cancelled.cancel()
    assert cancelled.result().outputs[0].finish_reason == "cancelled" and cancelled.embedding is None
    with pytest.raises(ModelError, match="not numbers"):
        broken.result()
    fine.result()
    assert fine.embedding == expected([5, 6, 2], "mean")


def test_only_known_kinds(make_engine: Make) -> None:
    with pytest.raises(RequestError, match="pooling is 'max'; it must be last or mean"):
        make_engine().submit([1], pooling="max")


def test_normalized() -> None:
    assert normalized([3.0, 4.0]) == [0.6, 0.8]
    assert normalized([0.0, 0.0]) == [0.0, 0.0]
