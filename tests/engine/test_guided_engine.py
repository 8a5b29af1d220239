"""Guided answers on a device that answers at once, one step late, and two steps late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from fake import EOS, oracle
from fake_grammar import following, joined

from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import RequestError
from dashinfer_lite.guided import Guided
from dashinfer_lite.sampling_params import SamplingParams

Make = Callable[..., Engine]
CHOICE = Guided(choice=["bcd", "bcdef", "hijklhijklhijkl", "efghij"])
PARAMS = SamplingParams(max_tokens=20, seed=1, guided=CHOICE)


def expected(prompt: list[int], params: SamplingParams, index: int = 0) -> list[int]:
    assert params.guided is not None
    own = partial(following, params.guided)
    return oracle(prompt, params, index, params.seed or 0, following=own).token_ids


def text(token_ids: list[int]) -> str:
    return joined([token for token in token_ids if token != EOS]).decode()


def test_an_answer_follows_its_grammar(make_engine: Make) -> None:
    """It ends where nothing more may come, without an end token; where more may come the model decides."""
    engine, ends = make_engine(), set()
    for seed in range(40):
        params = replace(PARAMS, seed=seed)
        output = engine.submit([5, 6, 7], params).result().outputs[0]
        assert output.token_ids == expected([5, 6, 7], params)
        assert (output.finish_reason, output.stop_reason) == ("stop", None)
        assert output.text == text(output.token_ids) in (CHOICE.choice or ())
        ends.add((output.text, output.token_ids[-1] == EOS))
    assert ends == {(choice, False) for choice in ("bcdef", "hijklhijklhijkl", "efghij")} | {("bcd", True)}


def test_company_preemption_and_prefixes_change_nothing(make_engine: Make) -> None:
    """Guided and free requests, several answers each, in a pool that holds half of them."""
    engine = make_engine(program={"blocks": 10})
    free = SamplingParams(max_tokens=25, seed=3, ignore_eos=True)
    jobs = []
    for i in range(8):
        params = replace(PARAMS, seed=i, n=2, logprobs=1) if i % 2 else replace(free, seed=i)
        prompt = [*range(9), i]
        jobs.append((prompt, params, engine.submit(prompt, params)))
    for prompt, params, request in jobs:
        for index, output in enumerate(request.result().outputs):
            if params.guided is None:
                assert output.token_ids == oracle(prompt, params, seed=params.seed or 0).token_ids
            else:
                assert output.token_ids == expected(prompt, params, index)
                assert [next(iter(entry)) for entry in output.logprobs or ()] == output.token_ids
    assert engine.metrics()["preemptions"] > 0
    assert engine.metrics()["prefix_hit_tokens"] > 0


def test_stop_tokens_come_where_the_text_is_complete(make_engine: Make) -> None:
    """EOS is allowed in no other place, not at all with ignore_eos; further stop tokens end a complete text too."""
    engine = make_engine()
    for seed in range(20):
        for params in (
            replace(PARAMS, seed=seed, ignore_eos=True),
            replace(PARAMS, seed=seed, ignore_eos=True, stop_token_ids=[40]),
        ):
            output = engine.submit([9], params).result().outputs[0]
            assert output.token_ids == expected([9], params)
            if 40 in output.token_ids:
                assert text(output.token_ids[:-1]) == "bcd" and output.stop_reason == 40
            else:
                assert text(output.token_ids) in ("bcdef", "hijklhijklhijkl", "efghij")


@pytest.mark.parametrize("how", ["refuse", "crash"])
def test_a_grammar_that_breaks_ends_its_request_alone(make_engine: Make, how: str) -> None:
    engine = make_engine()
    neighbour = engine.submit([1, 2], replace(PARAMS, n=2))
    request = engine.submit([5, 6, 7], SamplingParams(max_tokens=9, n=2, guided=Guided(grammar=f"{how} 3")))
    reason = "too complex" if how == "refuse" else "the grammar failed after 2 tokens: oops"
    with pytest.raises(RequestError, match=reason):
        request.result()
    assert request.status == "failed" and reason in str(request.output().error)
    assert neighbour.result().outputs[1].token_ids == expected([1, 2], PARAMS, 1)
    while engine.step():
        pass
    assert engine.metrics()["kv_blocks_used"] == 0


def test_what_cannot_be_said_ends_the_request(make_engine: Make) -> None:
    """A text that no tokens spell, and one that is complete too early."""
    engine = make_engine()
    with pytest.raises(RequestError, match="no token may come at position 4: bans, masks and the grammar"):
        engine.submit([1, 2, 3], replace(PARAMS, guided=Guided(choice=["b\n"]))).result()
    early = replace(PARAMS, min_tokens=9, guided=Guided(choice=["efghij"]))
    with pytest.raises(RequestError, match="complete after 6 tokens, and min_tokens asks for 9"):
        engine.submit([1, 2, 3], early).result()


def test_other_ends_still_hold(make_engine: Make) -> None:
    engine = make_engine()
    only = Guided(choice=["hijklhijklhijkl"])
    cut = engine.submit([1], replace(PARAMS, max_tokens=4, guided=only)).result().outputs[0]
    assert (cut.text, cut.finish_reason) == ("hijk", "length")
    exact = engine.submit([1], replace(PARAMS, max_tokens=15, guided=only)).result().outputs[0]
    assert (exact.text, exact.finish_reason) == ("hijklhijklhijkl", "stop")
    stopped = engine.submit([1], replace(PARAMS, stop="lh", guided=only)).result().outputs[0]
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("hijk", "stop", "lh")


def test_an_engine_without_grammars_says_so() -> None:
    from fake import FakeExecutable, fake_program

    program = fake_program()
    engine = Engine(FakeExecutable(program), program)
    with pytest.raises(RequestError, match="guided output needs a tokenizer"):
        engine.submit([1], PARAMS)
    engine.stop()
