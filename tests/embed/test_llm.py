"""The public face on small real models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dashinfer_lite import (
    LLM,
    AsyncLLM,
    CancelledError,
    CapacityError,
    DashInferError,
    DeviceError,
    Logprob,
    ModelError,
    RequestError,
    SamplingParams,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
Make = Callable[..., LLM]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("name", ["qwen2_5", "llama2", "mistral"])
def test_golden_tokens(make_llm: Make, name: str) -> None:
    """Prompts of all lengths together give the reference's tokens, and again from the prefix cache."""
    gold = load_file(GOLDEN / name / "golden.safetensors")
    llm = make_llm(name, dtype="fp32")
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=16, prompt_logprobs=16)
    prompts = [gold[f"p{i}.input_ids"].tolist() for i in range(3)]
    for outs in (
        llm.generate(prompts, params),
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)),
    ):
        for i, out in enumerate(outs):
            assert out.prompt_token_ids == prompts[i]
            assert out.outputs[0].token_ids == gold[f"p{i}.greedy_ids"].tolist()
            assert out.usage.prompt_tokens == len(prompts[i])
    out = llm.generate([prompts[1]], params)[0]
    answer = out.outputs[0]
    assert answer.logprobs is not None and out.prompt_logprobs is not None
    assert out.prompt_logprobs[0] is None and len(out.prompt_logprobs) == len(prompts[1])
    logits, ids = gold["p1.greedy_top_logits"], gold["p1.greedy_top_ids"]
    for step, entry in enumerate(answer.logprobs):
        expected = logits[step, 0] - gold["p1.greedy_logsumexp"][step]
        first = entry[answer.token_ids[step]]
        assert isinstance(first, Logprob) and first.rank == 1
        assert abs(first.logprob - expected) < 1e-3
        assert len(set(entry) & set(ids[step].tolist())) >= 14
    positions = gold["p1.logits_positions"].tolist()
    raw = gold["p1.logits"][positions.index(0)].astype(np.float64)
    scored = out.prompt_logprobs[1][prompts[1][1]]  # type: ignore[index]
    assert abs(scored.logprob - (raw[prompts[1][1]] - np.log(np.exp(raw - raw.max()).sum()) - raw.max())) < 1e-3


def test_texts_and_streams(make_llm: Make) -> None:
    """A text and its tokens are the same prompt; what is streamed joins to the text."""
    llm = make_llm()
    (out,) = llm.generate("the fox", GREEDY)
    assert out.prompt == "the fox"
    assert out.prompt_token_ids == llm.tokenizer.encode("the fox")
    (same,) = llm.generate(out.prompt_token_ids, GREEDY)
    assert (same.prompt, same.outputs[0].token_ids) == (None, out.outputs[0].token_ids)
    request = llm.submit("the fox", GREEDY)
    assert "".join(request) == request.text == out.text == out.outputs[0].text
    assert [token for token, _ in request.tokens()] == out.outputs[0].token_ids
    outs = llm.generate(["a", [5, 6]], [GREEDY, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)])
    assert [len(o.outputs[0].token_ids) for o in outs] == [8, 3]


def test_stop_string(make_llm: Make) -> None:
    llm = make_llm()
    whole = llm.generate("the", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))[0].text
    stop = whole[6:9]
    output = llm.generate("the", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=stop))[0].outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == (whole[: whole.index(stop)], "stop", stop)


def test_bad_words(make_llm: Make) -> None:
    llm = make_llm()
    tokens = llm.generate("the", GREEDY)[0].outputs[0].token_ids
    word = llm.tokenizer.decode(tokens[:1])
    if llm.tokenizer.encode(word, add_special_tokens=False) == tokens[:1]:
        again = llm.generate("the", SamplingParams(temperature=0, max_tokens=8, bad_words=[word]))[0]
        assert tokens[0] not in again.outputs[0].token_ids


def test_seeds_do_not_mind_company(make_llm: Make) -> None:
    llm = make_llm()
    params = [SamplingParams(max_tokens=6, seed=seed, ignore_eos=True) for seed in range(6)]
    together = llm.generate([[1, 2, 3]] * 6, params)
    alone = [llm.generate([1, 2, 3], own)[0] for own in params]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]
    assert len({tuple(o.outputs[0].token_ids) for o in alone}) > 1
    drawn = llm.generate([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True))[0]
    again = llm.generate([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True, seed=drawn.seed))[0]
    assert again.outputs[0].token_ids == drawn.outputs[0].token_ids


def test_chat(make_llm: Make) -> None:
    """A conversation gives one output, a list of them a list; a model without a template says so."""
    llm = make_llm()
    if not _has_template(llm):
        with pytest.raises(RequestError, match="chat template"):
            llm.chat([{"role": "user", "content": "Hi"}])
        return
    one = llm.chat([{"role": "user", "content": "Hi"}], GREEDY)
    several = llm.chat([[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Ho"}]], GREEDY)
    assert several[0].outputs[0].token_ids == one.outputs[0].token_ids


def test_demo_model_chats(device: str) -> None:
    with LLM(device=device, kv_memory="16MiB", max_context=256, max_batch=2) as llm:
        reply = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(temperature=0, max_tokens=6))
        assert reply.text and reply.prompt is not None and "Hi" in reply.prompt
        streamed = "".join(
            llm.submit(messages=[{"role": "user", "content": "Hi"}], params=SamplingParams(temperature=0, max_tokens=6))
        )
        assert streamed == reply.text
        for bad in ([], "Hi", [{"role": "user"}], [{"content": "Hi"}], [{"role": "user", "content": 5}], [[]]):
            if bad != [{"role": "user"}]:
                with pytest.raises(RequestError):
                    llm.chat(bad, GREEDY)  # type: ignore[call-overload]


def test_async(device: str) -> None:
    async def main() -> None:
        async with AsyncLLM(GOLDEN / "qwen2_5", device=device, kv_memory="16MiB", max_context=256, max_queue=2) as llm:
            expected = (await llm.generate("the fox", GREEDY))[0]
            pieces = [piece async for piece in llm.stream("the fox", GREEDY)]
            assert "".join(pieces) == expected.text
            outs = await llm.generate(["the fox", [1, 2]] * 4, GREEDY)  # more than the queue holds
            assert [o.outputs[0].token_ids for o in outs[::2]] == [expected.outputs[0].token_ids] * 4
            stream = llm.stream([1, 2], SamplingParams(temperature=0, max_tokens=200, ignore_eos=True))
            await anext(stream)
            await stream.aclose()
            assert (await llm.generate([1], GREEDY))[0].finished
            assert llm.llm.engine.metrics()["cancelled"] == 1
            with pytest.raises(RequestError, match="empty"):
                await llm.generate([[]], GREEDY)

    asyncio.run(main())


def test_info(make_llm: Make, device: str) -> None:
    llm = make_llm()
    info = llm.info
    assert (info["device"], info["max_context"], info["max_batch"]) == (device, 256, 4)
    assert info["threads"] >= 1 and info["load_s"] > 0 and info["architecture"] == "Qwen2ForCausalLM"
    assert llm.stats()["requests"] == 0
    assert llm.name == "qwen2_5" and "qwen2_5" in repr(llm)
    llm.close()
    llm.close()
    with pytest.raises(DashInferError, match="stopped"):
        llm.generate("a")


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([], None, "this list is empty"),
        ("", None, "prompt is empty|at least one token"),
        (5, None, "this is int"),
        (None, None, "this is NoneType"),
        ([[1], []], None, "prompt 1: the prompt is empty"),
        ([[1], [10**6]], None, "prompt 1: prompt token 0 is 1000000"),
        ([1, 10**6], None, "prompt token 1 is 1000000"),
        ([[1] * 256], None, "the prompt has 256 tokens"),
        ([[1], [2]], [SamplingParams()], "1 sampling parameters for 2 prompts"),
        ([1], {"top_k": 1}, "params must be SamplingParams"),
        ("a\ud800", None, "not valid Unicode"),
        ({"a": 1}, None, "this is dict"),
    ],
    ids=str,
)
def test_bad_requests(qwen: LLM, prompts: object, params: object, message: str) -> None:
    if prompts == "" and qwen.tokenizer.encode(""):
        pytest.skip("this tokenizer begins every text with a token")
    with pytest.raises(RequestError, match=message):
        qwen.generate(prompts, params)  # type: ignore[arg-type]
    assert qwen.generate([1], GREEDY)[0].finished


@pytest.fixture(scope="module")
def qwen() -> LLM:
    return LLM(GOLDEN / "qwen2_5", device="reference", kv_memory="16MiB", max_context=256)


@pytest.mark.parametrize("kv_cache", ["fp32", "bf16", "int8", "uint4"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_kv_caches(device: str, kv_cache: str) -> None:
    """Every cache generates; the pool is as large as the device's blocks make it, and a quantized one holds more."""
    with LLM(GOLDEN / "qwen2_5", device=device, kv_cache=kv_cache, kv_memory="1MiB", max_batch=4096) as llm:
        assert llm.info["kv_cache"] == kv_cache
        assert len(llm.generate([1, 2, 3], GREEDY)[0].outputs[0].token_ids) > 0
        model = llm._model
        kv = model.program.kv
        token = {"fp32": 8 * 64, "bf16": 4 * 64, "int8": 2 * 64 + 16, "uint4": 64 + 16}[kv_cache]
        block = token * kv.layers * kv.heads * kv.block_tokens
        assert kv.head_size == 64 and kv.blocks == 2**20 // block
        if device == "cpu":
            assert len(model.executable.kv_read([0])[0]) == block


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int8"}, RequestError, "dtype is 'int8'; it must be auto, fp32"),
        ({"kv_cache": "fp8"}, RequestError, "kv_cache is 'fp8'; it must be auto, fp32, fp16, bf16, int8, uint4"),
        ({"kv_cache": "fp16", "device": "cpu"}, RequestError, "kv_cache='fp16' is for GPUs; on the CPU use 'bf16'"),
        ({"kv_memory": "lots"}, RequestError, "kv_memory is 'lots'"),
        ({"kv_memory": -1}, RequestError, "kv_memory is -1"),
        ({"kv_memory": True}, RequestError, "kv_memory is True"),
        ({"kv_memory": "1KB"}, CapacityError, "raise kv_memory"),
        (
            {"kv_memory": "1MiB", "max_context": 100000},
            CapacityError,
            "a context of 100000 tokens needs .* raise kv_memory or lower max_context",
        ),
        ({"max_context": 1}, RequestError, "max_context is 1"),
        ({"max_context": 2.5}, RequestError, "max_context is 2.5"),
        ({"max_batch": 0}, RequestError, "max_batch is 0"),
        ({"max_batch": True}, RequestError, "max_batch is True"),
        ({"device": "abacus"}, DeviceError, "abacus"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    if "device" in options:
        pytest.importorskip("dashinfer_lite._native", reason="the package was not built")
    with pytest.raises(error, match=message):
        LLM(GOLDEN / "qwen2_5", **{"device": "reference", "kv_memory": "16MiB", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["16MiB", " 16 mib", "16384 KiB", 16 * 2**20, "0.015625GiB", "16777216", "16777216B"])
def test_sizes(text: str | int) -> None:
    from dashinfer_lite.loading import parse_size

    assert parse_size("kv_memory", text) == 16 * 2**20


def test_no_more_blocks_than_the_batch_needs() -> None:
    """And a context that nobody asked for is cut to what the memory holds."""
    with LLM(GOLDEN / "qwen2_5", device="reference", kv_memory="1GiB", max_context=64, max_batch=2) as llm:
        assert llm.info["kv_tokens"] == 128
    with LLM(GOLDEN / "qwen2_5", device="reference", kv_memory="128KiB", max_batch=2) as llm:
        assert llm.info["max_context"] == llm.info["kv_tokens"] < 2048


def test_missing_folder() -> None:
    with pytest.raises(ModelError, match="no such folder"):
        LLM("/nowhere", device="reference")


def test_loading_can_be_watched_and_cancelled() -> None:
    seen: list[tuple[int, int]] = []
    LLM(
        GOLDEN / "qwen2_5", device="reference", kv_memory="16MiB", max_context=64, progress=lambda *at: seen.append(at)
    ).close()
    assert seen and seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    with pytest.raises(CancelledError):
        LLM(
            GOLDEN / "llama2", device="reference", kv_memory="16MiB", max_context=64, progress=lambda done, total: False
        )


def test_two_models_in_one_process(make_llm: Make) -> None:
    """Interleaved, each as if it were alone."""
    first, second = make_llm("qwen2_5"), make_llm("llama2")
    alone = [llm.generate([5, 6, 7], GREEDY)[0].outputs[0].token_ids for llm in (first, second)]
    requests = [llm.submit([5, 6, 7], GREEDY) for _ in range(3) for llm in (first, second)]
    assert [request.result().outputs[0].token_ids for request in requests] == alone * 3
    first.close()
    assert second.generate([5, 6, 7], GREEDY)[0].outputs[0].token_ids == alone[1]


def _has_template(llm: LLM) -> bool:
    try:
        llm.render_chat([{"role": "user", "content": "Hi"}])
    except RequestError:
        return False
    return True
