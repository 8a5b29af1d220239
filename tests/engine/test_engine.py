"""What an engine promises, on a device that answers at once, one step late, and two steps late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fake import EOS, POISON, oracle, prompt_digest, score, top
from fake_codec import full_text

from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import CapacityError, DashInferError, DeviceError, ModelError, RequestError
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.sampling_params import SamplingParams

Make = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def run(engine: Engine) -> None:
    while engine.step():
        pass


def check_pool(engine: Engine) -> None:
    """After everything has ended, no block is in use."""
    assert engine.metrics()["kv_blocks_used"] == 0
    assert engine.metrics()["running"] == engine.metrics()["waiting"] == 0


def test_one_request(make_engine: Make) -> None:
    engine = make_engine()
    request = engine.submit([5, 6, 7], GREEDY, prompt="fgh")
    assert request.status == "queued"
    out = request.result()
    assert out.outputs[0].token_ids == oracle([5, 6, 7], GREEDY).token_ids
    assert out.outputs[0].text == full_text(out.outputs[0].token_ids) == request.text
    assert (out.prompt, out.prompt_token_ids, out.finished, out.error) == ("fgh", [5, 6, 7], True, None)
    assert (out.outputs[0].finish_reason, out.outputs[0].stop_reason, request.status) == ("length", None, "finished")
    assert (out.usage.prompt_tokens, out.usage.completion_tokens, out.usage.total_tokens) == (3, 12, 15)
    assert 0 <= out.timings.queue_s <= out.timings.ttft_s <= out.timings.total_s
    run(engine)
    check_pool(engine)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 17, 40])
def test_chunked_prefill(make_engine: Make, length: int) -> None:
    """Prompts shorter and longer than a block and than a step."""
    engine = make_engine()
    prompt = [(7 * i) % 60 for i in range(length)]
    assert engine.submit(prompt, GREEDY).result().outputs[0].token_ids == oracle(prompt, GREEDY).token_ids


def test_company_changes_nothing(make_engine: Make) -> None:
    """More requests than fit into a step, of all lengths, each as if it were alone; sampled ones too."""
    engine = make_engine()
    jobs = []
    for i in range(12):
        params = SamplingParams(
            temperature=0.5 * (i % 3), seed=100 + i, max_tokens=3 + i, top_k=i, top_p=0.9, min_p=0.1
        )
        prompt = [(i * j + 1) % 60 for j in range(1 + 3 * i)]
        jobs.append((prompt, params, engine.submit(prompt, params)))
    for prompt, params, request in jobs:
        expected = oracle(prompt, params, seed=params.seed or 0)
        output = request.result().outputs[0]
        assert (output.token_ids, output.finish_reason) == (expected.token_ids, expected.finish_reason)
    run(engine)
    check_pool(engine)


def test_preemption_is_invisible(make_engine: Make) -> None:
    """Four requests that need twice the pool: the youngest give way, and nobody's answer changes."""
    engine = make_engine(program={"blocks": 12})
    prompts = [[10 * i + j for j in range(6)] for i in range(4)]
    params = replace(GREEDY, max_tokens=30)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.result().outputs[0].token_ids == oracle(prompt, params).token_ids
    assert engine.metrics()["preemptions"] > 0
    run(engine)
    check_pool(engine)


def test_prefix_cache(make_engine: Make) -> None:
    """A second request takes all full blocks but the one with its last token; salts and adapters keep apart."""
    engine = make_engine(program={"block_tokens": 4})
    prompt = list(range(10, 30))
    cold = engine.submit(prompt, GREEDY).result()
    warm = engine.submit(prompt, GREEDY).result()
    assert (cold.usage.cached_tokens, warm.usage.cached_tokens) == (0, 16)
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids == oracle(prompt, GREEDY).token_ids
    answered = prompt + cold.outputs[0].token_ids + [1]
    assert engine.submit(answered, GREEDY).result().usage.cached_tokens == 28  # the answer is there as well
    assert engine.submit(prompt, GREEDY, cache_salt="mine").result().usage.cached_tokens == 0
    assert engine.submit(prompt, GREEDY, adapter=1).result().usage.cached_tokens == 0
    assert engine.submit(prompt, GREEDY, cache_salt="mine").result().usage.cached_tokens == 16
    metrics = engine.metrics()
    assert metrics["prefix_hit_tokens"] == 16 + 28 + 16
    assert metrics["prefix_queried_tokens"] == 5 * 20 + 33


def test_prefix_cache_can_be_switched_off(make_engine: Make) -> None:
    engine = make_engine(prefix_cache=False)
    for _ in range(2):
        assert engine.submit(list(range(20)), replace(GREEDY, n=2)).result().usage.cached_tokens == 0
    run(engine)
    assert engine.metrics()["kv_blocks_cached"] == 0


def test_history_rope_shares_between_equal_lengths_only(make_engine: Make) -> None:
    engine = make_engine(program={"history_rope": True})
    prompt = list(range(10, 30))
    first = engine.submit(prompt, GREEDY).result()
    assert first.outputs[0].token_ids == oracle(prompt, GREEDY, history_rope=True).token_ids
    assert engine.submit(prompt, GREEDY).result().usage.cached_tokens == 16
    longer = engine.submit([*prompt, 1], GREEDY).result()
    assert longer.usage.cached_tokens == 0
    assert longer.outputs[0].token_ids == oracle([*prompt, 1], GREEDY, history_rope=True).token_ids


def test_bidirectional_span_is_never_split(make_engine: Make) -> None:
    """The span goes in one step even when others leave too little room, and is shared as a whole or not at all."""
    engine = make_engine()
    others = [engine.submit([i] * 9, replace(GREEDY, max_tokens=20)) for i in range(3)]
    for _ in range(4):
        engine.step()
    prompt = list(range(20, 38))
    request = engine.submit(prompt, GREEDY, span=14)
    assert request.result().outputs[0].token_ids == oracle(prompt, GREEDY, span=14).token_ids
    again = engine.submit(prompt, GREEDY, span=14).result()
    assert again.usage.cached_tokens == 16
    assert again.outputs[0].token_ids == oracle(prompt, GREEDY, span=14).token_ids
    other = engine.submit([*prompt[:8], *range(40, 50)], GREEDY, span=14).result()
    assert other.usage.cached_tokens == 0
    for request in others:
        request.result()
    assert all(start == 0 and count >= 14 for start, count in engine.fake.spans)  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="span has 17 tokens"):
        engine.submit(prompt, GREEDY, span=17)


def test_several_answers(make_engine: Make) -> None:
    """n answers share the prompt's blocks and differ by their number alone."""
    engine = make_engine()
    params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True)
    prompt = list(range(18))
    request = engine.submit(prompt, params)
    out = request.result()
    expected = [oracle(prompt, params, index, seed=5).token_ids for index in range(3)]
    assert [output.token_ids for output in out.outputs] == expected
    assert [output.index for output in out.outputs] == [0, 1, 2]
    assert len({tuple(ids) for ids in expected}) == 3
    assert out.usage.completion_tokens == 18
    assert list(request.pieces(2)) and "".join(request.pieces(2)) == full_text(expected[2])
    run(engine)
    # The prompt once, its last two tokens for each answer, and five more a piece.
    assert engine.metrics()["computed_tokens"] <= 18 + 2 * 2 + 3 * 5 + 3 * 2
    check_pool(engine)


def test_seed(make_engine: Make) -> None:
    engine = make_engine()
    free = SamplingParams(max_tokens=8, ignore_eos=True)
    first, second = (engine.submit([1, 2], free).result() for _ in range(2))
    assert first.seed != second.seed
    again = engine.submit([1, 2], replace(free, seed=first.seed)).result()
    assert again.seed == first.seed
    assert again.outputs[0].token_ids == first.outputs[0].token_ids != second.outputs[0].token_ids


def test_end_of_text(make_engine: Make) -> None:
    """EOS ends an answer, is one of its tokens and no part of its text; what ran ahead is forgotten."""
    engine = make_engine()
    prompt, params = _prompt_with_eos()
    output = engine.submit(prompt, params).result().outputs[0]
    assert output.token_ids == oracle(prompt, params).token_ids
    assert (output.token_ids[-1], output.finish_reason, output.stop_reason) == (EOS, "stop", None)
    assert output.text == full_text(output.token_ids)
    run(engine)
    check_pool(engine)
    beyond = replace(params, min_tokens=len(output.token_ids) + 5)
    later = engine.submit(prompt, beyond).result().outputs[0]
    assert later.token_ids == oracle(prompt, beyond).token_ids
    assert EOS not in later.token_ids[: beyond.min_tokens]


def test_stop_token(make_engine: Make) -> None:
    engine = make_engine()
    whole = oracle([5, 6], GREEDY).token_ids
    stop = whole[4]
    cut = whole[: whole.index(stop) + 1]
    for include in (False, True):
        params = replace(GREEDY, stop_token_ids=[stop], include_stop_str_in_output=include)
        output = engine.submit([5, 6], params).result().outputs[0]
        assert (output.token_ids, output.finish_reason, output.stop_reason) == (cut, "stop", stop)
        assert output.text == full_text(cut if include else cut[:-1])


def test_stop_string(make_engine: Make) -> None:
    """A stop string across tokens ends the answer and no part of it is ever streamed."""
    engine = make_engine()
    prompt = [8, 9, 10]
    params = replace(GREEDY, max_tokens=30)
    whole = full_text(oracle(prompt, params).token_ids)
    stop = whole[5:9]
    end = whole.index(stop)
    request = engine.submit(prompt, replace(params, stop=["never there", stop]))
    streamed = ""
    for piece in request:
        streamed += piece
        assert whole[:end].startswith(streamed)
    output = request.result().outputs[0]
    assert streamed == output.text == whole[:end]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert len(output.token_ids) < 30
    included = engine.submit(prompt, replace(params, stop=stop, include_stop_str_in_output=True)).result()
    assert included.outputs[0].text == whole[: end + 4]
    late = engine.submit(prompt, replace(params, stop=stop, min_tokens=25)).result().outputs[0]
    assert late.text.startswith(whole[: end + 4])


def test_never_half_a_character(make_engine: Make) -> None:
    engine = make_engine()
    bias = {60: 100.0, 61: 100.0, 62: 100.0}
    for seed in range(4):
        params = SamplingParams(
            max_tokens=12, seed=seed, logit_bias=bias, ignore_eos=True, bad_words=[[t] for t in range(50)]
        )
        request = engine.submit([seed], params)
        pieces = list(request)
        assert "".join(pieces) == full_text(request.result().outputs[0].token_ids)
        assert all(pieces)


def test_logprobs(make_engine: Make) -> None:
    """One dict a position: the token that is there first, then the most likely ones."""
    engine = make_engine()
    params = replace(GREEDY, logprobs=3, prompt_logprobs=2, max_tokens=5)
    prompt = list(range(30, 52))
    for _ in range(2):  # the second finds the prompt in the cache and must score it nevertheless
        out = engine.submit(prompt, params).result()
        expected = oracle(prompt, params)
        output = out.outputs[0]
        assert output.token_ids == expected.token_ids
        assert output.logprobs is not None and out.prompt_logprobs is not None
        for token, digest, entry in zip(expected.token_ids, expected.digests, output.logprobs, strict=True):
            _check_entry(entry, token, digest, 3)
        assert output.cumulative_logprob == sum(
            score(d, t)[0] for t, d in zip(expected.token_ids, expected.digests, strict=True)
        )
        assert out.prompt_logprobs[0] is None
        for token, digest, entry in zip(prompt[1:], prompt_digest(prompt)[:-1], out.prompt_logprobs[1:], strict=True):
            assert entry is not None
            _check_entry(entry, token, digest, 2)
    none = engine.submit(prompt, replace(GREEDY, logprobs=0)).result()
    assert none.outputs[0].logprobs is not None and all(len(entry) == 1 for entry in none.outputs[0].logprobs)
    assert none.prompt_logprobs is None
    plain = engine.submit(prompt, GREEDY).result().outputs[0]
    assert plain.logprobs is None and plain.cumulative_logprob is None


def test_token_stream(make_engine: Make) -> None:
    engine = make_engine()
    request = engine.submit([1, 2, 3], replace(GREEDY, logprobs=1))
    items = list(request.tokens())
    output = request.result().outputs[0]
    assert [token for token, _ in items] == output.token_ids
    assert [entry for _, entry in items] == output.logprobs
    assert list(engine.submit([1, 2, 3], GREEDY).tokens()) == [(token, None) for token in output.token_ids]


def test_prompt_logprobs_survive_preemption(make_engine: Make) -> None:
    engine = make_engine(program={"blocks": 12})
    params = replace(GREEDY, max_tokens=24, prompt_logprobs=0)
    prompts = [[i] * 20 for i in range(4)]
    requests = [engine.submit(prompt, params) for prompt in prompts]
    for prompt, request in zip(prompts, requests, strict=True):
        out = request.result()
        assert out.outputs[0].token_ids == oracle(prompt, params).token_ids
        assert out.prompt_logprobs is not None
        found = [
            entry[token].logprob for entry, token in zip(out.prompt_logprobs[1:], prompt[1:], strict=True) if entry
        ]
        assert found == [score(d, t)[0] for t, d in zip(prompt[1:], prompt_digest(prompt)[:-1], strict=True)]
    assert engine.metrics()["preemptions"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"repetition_penalty": 1.25},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"no_repeat_ngram_size": 2},
        {"logit_bias": {5: 1.5, 2: -3.0}},
        {"bad_words": [[7], [2]]},
        {"min_tokens": 9},
        {"temperature": 0.7, "top_k": 5, "seed": 2**64 - 1},
    ],
    ids=str,
)
def test_every_setting_reaches_the_device(make_engine: Make, change: dict[str, object]) -> None:
    engine = make_engine()
    params = replace(SamplingParams(temperature=0, max_tokens=14), **change)
    request = engine.submit([4, 5, 6], params)
    company = engine.submit([4, 5, 6], GREEDY)
    expected = oracle([4, 5, 6], params, seed=params.seed or 0)
    assert request.result().outputs[0].token_ids == expected.token_ids
    assert company.result().outputs[0].token_ids == oracle([4, 5, 6], GREEDY).token_ids
    changed = oracle([4, 5, 6], params, seed=params.seed or 0).token_ids != oracle([4, 5, 6], GREEDY).token_ids
    assert changed or "min_tokens" in change


def test_bad_words_of_several_tokens(make_engine: Make) -> None:
    """A phrase is cut at its last token, wherever the answer gets to its beginning."""
    engine = make_engine()
    free = oracle([4, 5], GREEDY).token_ids
    phrase = free[3:5]
    output = engine.submit([4, 5], replace(GREEDY, bad_words=[phrase])).result().outputs[0]
    assert output.token_ids[:4] == free[:4]
    assert all(output.token_ids[i : i + 2] != phrase for i in range(11))
    # What the prompt ends with is no part of the answer.
    output = engine.submit([4, 5], replace(GREEDY, bad_words=[[5, free[0]], free[3:6]])).result().outputs[0]
    assert output.token_ids[:5] == free[:5] and output.token_ids[5] != free[5]


def test_host_dependent_rows_do_not_run_ahead(make_engine: Make, delay: int) -> None:
    engine = make_engine()
    fake = engine.fake  # type: ignore[attr-defined]
    for change in (
        {"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"no_repeat_ngram_size": 3},
        {"bad_words": [[1, 2]]}, {"stop": "zzz"},
    ):  # fmt: skip
        engine.submit([1, 2, 3], replace(GREEDY, **change)).result()
        assert fake.ran_ahead == 0, change
    engine.submit([1, 2, 3], replace(GREEDY, min_tokens=4, logprobs=1)).result()
    assert (fake.ran_ahead > 0) == (delay > 0)


def test_cancel(make_engine: Make) -> None:
    """A cancelled request ends within one step, whether it waits, is in the middle of its prompt, or generates."""
    engine = make_engine(program={"limits": Limits(max_tokens=8, max_seqs=1, max_logprobs=4)})
    long = engine.submit(list(range(40)), GREEDY)
    waiting = engine.submit([1, 2], GREEDY)
    engine.step()
    assert (long.status, waiting.status) == ("prefilling", "queued")
    waiting.cancel()
    long.cancel()
    engine.step()
    assert (long.status, waiting.status) == ("cancelled", "cancelled")
    assert long.result().outputs[0].finish_reason == "cancelled"
    request = engine.submit([1, 2], replace(GREEDY, max_tokens=30))
    stream = iter(request)
    first = next(stream)
    request.cancel()
    request.cancel()
    assert first + "".join(stream) == request.result().outputs[0].text
    assert request.status == "cancelled"
    request.cancel()
    run(engine)
    check_pool(engine)
    assert engine.metrics()["cancelled"] == 3


def test_priority(make_engine: Make) -> None:
    engine = make_engine(program={"limits": Limits(max_tokens=8, max_seqs=1, max_logprobs=4)})
    requests = [engine.submit([i], replace(GREEDY, max_tokens=2), priority=p) for i, p in enumerate((1, 0, 1, -5))]
    ended: list[int] = []
    while len(ended) < 4:
        engine.step()
        ended += [request.id for request in requests if request.is_done and request.id not in ended]
    assert ended == [requests[3].id, requests[1].id, requests[0].id, requests[2].id]


def test_a_long_prompt_does_not_make_answers_stutter(make_engine: Make, delay: int) -> None:
    """While a prompt of many steps is computed, whoever generates gets a token a step."""
    engine = make_engine()
    fast = engine.submit([1], replace(GREEDY, max_tokens=20))
    while fast.status != "generating":
        engine.step()
    engine.submit(list(range(60)) * 2, GREEDY, priority=-1)
    before = fast.usage.completion_tokens
    for _ in range(6):
        engine.step()
    assert fast.usage.completion_tokens - before == 6


def test_bounded_queue(make_engine: Make) -> None:
    engine = make_engine(max_queue=2)
    first, second = engine.submit([1], GREEDY), engine.submit([2], GREEDY)
    with pytest.raises(CapacityError, match="queue is full: 2 requests"):
        engine.submit([3], GREEDY)
    third = engine.submit([3], GREEDY, block=True)  # pumps until there is room
    second.cancel()
    for request in (first, second, third):
        request.result()
    for i in range(4):
        engine.submit([i], GREEDY).result()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([64], "prompt token 0 is 64; the model has the tokens 0 to 63"),
        ([1, -1], "prompt token 1 is -1"),
        ([1, True], "prompt token 1 is True"),
        ([1, 2.0], "prompt token 1 is 2.0"),
        (["a"], "prompt token 0 is 'a'"),
        ("text", "must be a list of integers, not str"),
        (None, "must be a list of integers, not NoneType"),
        ([1] * 48, "the prompt has 48 tokens; .* context of 48 tokens"),
    ],
)
def test_bad_prompts(make_engine: Make, prompt: object, message: str) -> None:
    engine = make_engine(program={"blocks": 12})
    with pytest.raises(RequestError, match=message):
        engine.submit(prompt, GREEDY)  # type: ignore[arg-type]
    assert engine.submit([1], GREEDY).result().finished


def test_params_beyond_the_model(make_engine: Make) -> None:
    engine = make_engine()
    for params, message in (
        (SamplingParams(logprobs=9), "logprobs is 9; it must be an integer from 0 to 8"),
        (SamplingParams(prompt_logprobs=9), "prompt_logprobs is 9"),
        (SamplingParams(logit_bias={64: 1.0}), "logit_bias has token 64; the model has the tokens 0 to 63"),
        (SamplingParams(stop_token_ids=[64]), "stop_token_ids has token 64"),
        (SamplingParams(bad_words=[[1, 64]]), "bad_words has token 64"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.submit([1], params)


def test_context_and_pool_end_an_answer(make_engine: Make) -> None:
    """An answer ends with the context; one that fills the whole pool still gets there, alone."""
    engine = make_engine(program={"blocks": 6}, max_context=100)
    assert engine.max_context == 24
    params = replace(GREEDY, max_tokens=None)
    requests = [engine.submit([i, 2, 3], params) for i in range(3)]
    for i, request in enumerate(requests):
        output = request.result().outputs[0]
        assert (len(output.token_ids), output.finish_reason) == (21, "length")
        assert output.token_ids == oracle([i, 2, 3], params, max_context=24).token_ids


def test_logits_that_are_no_numbers(make_engine: Make) -> None:
    """They fail their request and nobody else."""
    engine = make_engine()
    good, bad = engine.submit([1, 2], GREEDY), engine.submit([1, POISON], GREEDY)
    with pytest.raises(ModelError, match="logits at position 2 are not numbers"):
        bad.result()
    with pytest.raises(ModelError):
        list(bad)
    assert bad.status == "failed"
    out = bad.output()
    assert (out.outputs[0].finish_reason, out.outputs[0].token_ids) == ("error", [])
    assert out.error is not None and "not numbers" in out.error
    assert good.result().outputs[0].token_ids == oracle([1, 2], GREEDY).token_ids
    run(engine)
    check_pool(engine)


def test_nothing_left_to_draw(make_engine: Make) -> None:
    engine = make_engine()
    request = engine.submit([1], SamplingParams(bad_words=[[t] for t in range(63)]))
    with pytest.raises(RequestError, match="no token may come at position 1"):
        request.result()


def test_failed_step(make_engine: Make) -> None:
    """A step that fails as a whole takes its requests with it; the next ones are served, from a sound cache."""
    engine = make_engine(failing=(3,), program={"limits": Limits(max_tokens=8, max_seqs=2, max_logprobs=4)})
    prompts = [[i] * 9 for i in range(4)]
    requests = [engine.submit(prompt, GREEDY) for prompt in prompts]
    run(engine)
    failed = [request for request in requests if request.status == "failed"]
    assert 1 <= len(failed) <= 2
    for request in failed:
        with pytest.raises(DeviceError, match="told to fail"):
            request.result()
    check_pool(engine)
    for prompt in prompts:
        assert engine.submit(prompt, GREEDY).result().outputs[0].token_ids == oracle(prompt, GREEDY).token_ids


def test_stop(make_engine: Make) -> None:
    engine = make_engine()
    running, queued = engine.submit([1], GREEDY), engine.submit([2], GREEDY)
    engine.step()
    engine.stop()
    engine.stop()
    assert running.result().outputs[0].finish_reason == queued.result().outputs[0].finish_reason == "cancelled"
    with pytest.raises(DashInferError, match="has been stopped"):
        engine.submit([1], GREEDY)
    with pytest.raises(DashInferError, match="has been stopped"):
        engine.step()


def test_result_can_time_out(make_engine: Make) -> None:
    request = make_engine().submit([1], GREEDY)
    with pytest.raises(TimeoutError, match="request 0 is not done"):
        request.result(timeout=-1)
    assert request.result().finished


def test_several_position_rows(make_engine: Make) -> None:
    engine = make_engine(program={"position_rows": 3})
    assert (
        engine.submit(list(range(21)), GREEDY).result().outputs[0].token_ids
        == oracle(list(range(21)), GREEDY).token_ids
    )


def _check_entry(entry: dict[int, object], token: int, digest: int, n_top: int) -> None:
    assert next(iter(entry)) == token
    logprob, rank = score(digest, token)
    first = entry[token]
    assert (first.logprob, first.rank) == (logprob, rank)  # type: ignore[attr-defined]
    ids, values = top(digest, n_top)
    assert set(entry) == {token, *ids}
    for place, (other, value) in enumerate(zip(ids, values, strict=True), start=1):
        if other != token:
            assert (entry[other].logprob, entry[other].rank) == (value, place)  # type: ignore[attr-defined]
            assert isinstance(entry[other].decoded_token, str)  # type: ignore[attr-defined]


def _prompt_with_eos() -> tuple[list[int], SamplingParams]:
    """A prompt whose greedy answer ends by itself, neither at once nor very late."""
    params = SamplingParams(temperature=0, max_tokens=40)
    for i in range(60):
        expected = oracle([i, i + 1], params)
        if expected.finish_reason == "stop" and 3 < len(expected.token_ids) < 20:
            return [i, i + 1], params
    raise AssertionError("no such prompt")
