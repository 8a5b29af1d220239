"""LLM.embed against the hidden states that transformers gave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dashinfer_lite import LLM, AsyncLLM, RequestError


def test_states_are_those_of_the_last_norm(make_llm: Callable[..., LLM], golden: Path) -> None:
    data = load_file(golden / "qwen2_5" / "golden.safetensors")
    prompt, states = data["p1.input_ids"].tolist(), data["p1.hidden"][-1]
    llm = make_llm(dtype="fp32")
    for pooling, state in (("last", states[-1]), ("mean", states.mean(0))):
        (found,) = llm.embed(prompt, pooling=pooling, normalize=False)
        np.testing.assert_allclose(found.embedding, state, atol=2e-4, rtol=0)
        assert found.prompt_token_ids == prompt and found.usage.prompt_tokens == len(prompt)
        (unit,) = llm.embed(prompt, pooling=pooling)
        np.testing.assert_allclose(unit.embedding, state / np.linalg.norm(state), atol=2e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_company_changes_no_bit(make_llm: Callable[..., LLM], pooling: Any) -> None:
    """Alone, in a batch, beside an answer, and again with a warm cache."""
    llm = make_llm()
    prompts = [[(7 * i * j) % 380 for j in range(1, 40 + 30 * i)] for i in range(1, 5)]
    alone = [llm.embed(prompt, pooling=pooling)[0].embedding for prompt in prompts]
    answer = llm.submit([5, 6, 7])
    together = [found.embedding for found in llm.embed(prompts, pooling=pooling)]
    answer.cancel()
    assert together == alone


def test_from_a_loop_and_refusals(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    (found,) = asyncio.run(AsyncLLM(llm=llm).embed([1, 2, 3]))
    assert found.embedding == llm.embed([1, 2, 3])[0].embedding
    with pytest.raises(RequestError, match="pooling is 'sum'"):
        llm.embed([1, 2, 3], pooling="sum")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="prompt token 0 is 100000"):
        llm.embed([[1, 2], [100000]])
