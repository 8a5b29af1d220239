"""Whole models on the CUDA device of the emulator: the production host library, from loading to tokens.

In fp32 the tokens are those of the reference texts, which are the CPU's too; in 16 bit up to the first step whose
margin is under four times the rms error of 16-bit arithmetic. Quantized products are integers: there CPU and CUDA
differ by roundings only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import Emulator, emulator, missing
from safetensors.numpy import load_file
from stepping import Loop, load

from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import DashInferError
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.sampling_params import SamplingParams

NEW_TOKENS = 8
LIMITS = Limits(max_tokens=128, tail_rows=16, max_seqs=4, max_logprobs=4)
ENGINE_TOKENS = 16
PROMPTS = ("p0", "p1", "p2")


@pytest.fixture
def emulated() -> Iterator[Emulator]:
    """The device "cuda" on the emulator."""
    if why := missing():
        pytest.skip(why)
    made = emulator()
    made.register()
    yield made
    made.set("graphs", "")


def generate(folder: Path, device: Any, *, dtype: Any, kv_dtype: Any, chunk: int | None = None) -> list[Any]:
    """All prompts together, without an engine."""
    expected = load_file(folder / "golden.safetensors")
    executable, program = load(folder, device, dtype=dtype, kv_dtype=kv_dtype, limits=LIMITS)
    prompts = [expected[f"{prompt}.input_ids"].tolist() for prompt in PROMPTS]
    sequences = Loop(executable, program).generate(prompts, NEW_TOKENS, chunk=chunk)
    executable.close()
    return sequences


QUICK = ("qwen2_5", "qwen3_moe")
SLOW = ("baichuan_13b", "chatglm3", "gemma2", "glm4", "llama3_2", "mistral", "phi3", "qwen2_moe", "qwen3", "qwen_v1")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_fp32(emulated: Emulator, golden: Path, name: str) -> None:
    """Logits within 1e-3, and every token."""
    device = open_device("cuda")
    expected = load_file(golden / name / "golden.safetensors")
    sequences = generate(golden / name, device, dtype="f32", kv_dtype="f32", chunk=20)
    device.close()
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        assert sequence.drawn == expected[f"{prompt}.greedy_ids"].tolist()[:NEW_TOKENS], prompt
        rows = [at for at, row in enumerate(expected[f"{prompt}.logits_positions"]) if row < len(sequence.logits)]
        positions = expected[f"{prompt}.logits_positions"][rows]
        got = np.stack([sequence.logits[position] for position in positions])
        assert np.abs(got - expected[f"{prompt}.logits"][rows]).max() <= 1e-3, prompt


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["qwen2_5", pytest.param("mistral", marks=pytest.mark.slow)])
def test_16_bit(emulated: Emulator, golden: Path, name: str, dtype: str) -> None:
    """Tokens up to the first step that 16 bits may decide otherwise."""
    budget = json.loads((golden / name / "golden.json").read_text())["low_precision_reference_error"]
    device = open_device("cuda")
    expected = load_file(golden / name / "golden.safetensors")
    sequences = generate(golden / name, device, dtype=dtype, kv_dtype=dtype)
    device.close()
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        unsure = np.flatnonzero(expected[f"{prompt}.greedy_margin"][:NEW_TOKENS] < 4 * budget["rms"])
        sure = int(unsure[0]) if len(unsure) else NEW_TOKENS
        assert sequence.drawn[:sure] == expected[f"{prompt}.greedy_ids"].tolist()[:sure], prompt


QUANTIZED = [("qwen2_gptq4", "int8"), pytest.param("qwen2_awq", "uint4", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "kv_cache"), QUANTIZED)
def test_quantized(emulated: Emulator, golden: Path, name: str, kv_cache: str) -> None:
    """Codes of weights and of the cache: logits beside the CPU's."""
    from dashinfer_lite import LLM

    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=1)
    prompt = load_file(golden / name / "golden.safetensors")["p0.input_ids"].tolist()
    outputs = []
    for device in ("cpu", "cuda"):
        with LLM(golden / name, device, "fp32", kv_cache, "16MiB", max_batch=4, quant="a16w4") as llm:
            outputs.append(llm.submit(prompt, params).result().outputs[0])
    assert outputs[0].token_ids == outputs[1].token_ids
    for cpu, cuda in zip(outputs[0].logprobs, outputs[1].logprobs, strict=True):
        for token, entry in cpu.items():
            assert abs(entry.logprob - cuda[token].logprob) < 2e-2


@pytest.mark.parametrize("graphs", ["1", "0"])
def test_engine(emulated: Emulator, golden: Path, graphs: str) -> None:
    """Two steps in flight, small chunks, a pool that forces preemption, a second round from the prefix cache."""
    control = emulated.control()
    expected = load_file(golden / "qwen2_5" / "golden.safetensors")
    emulated.set("graphs", graphs)
    device = open_device("cuda")
    limits = Limits(max_tokens=16, max_seqs=3, tail_rows=2, max_logprobs=4)
    executable, program = load(golden / "qwen2_5", device, limits=limits, blocks=4, block_tokens=32)
    engine = Engine(executable, program)
    params = SamplingParams(temperature=0, max_tokens=ENGINE_TOKENS, ignore_eos=True)
    before = control.emu_count(b"cuGraphLaunch")
    for number in range(2):
        requests = [engine.submit(expected[f"{prompt}.input_ids"].tolist(), params) for prompt in PROMPTS]
        for prompt, request in zip(PROMPTS, requests, strict=True):
            output = request.result()
            assert output.outputs[0].token_ids == expected[f"{prompt}.greedy_ids"].tolist()[:ENGINE_TOKENS], (
                prompt,
                number,
            )
    metrics = engine.metrics()
    assert metrics["preemptions"] > 0 and metrics["prefix_hit_tokens"] > 0, metrics
    assert (control.emu_count(b"cuGraphLaunch") > before) == (graphs == "1")
    engine.stop()
    executable.close()
    device.close()


@pytest.mark.parametrize(("graphs", "hurry"), [("1", 0), ("0", 1)])
def test_prefixes_that_leave_and_return(emulated: Emulator, golden: Path, graphs: str, hurry: int) -> None:
    """A pool so small that prompts push each other out to pinned memory, from where they come back: the same tokens."""
    control = emulated.control()
    expected = load_file(golden / "qwen2_5" / "golden.safetensors")
    emulated.set("graphs", graphs)
    control.emu_hurry(hurry)
    try:
        device = open_device("cuda")
        limits = Limits(max_tokens=80, max_seqs=2, tail_rows=2, max_logprobs=4)
        executable, program = load(golden / "qwen2_5", device, limits=limits, blocks=5, host_blocks=6)
        engine = Engine(executable, program)
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        known = expected["p2.input_ids"].tolist()
        prompts = [known, [*known[::-1], *known[:12]], [*known[5:], *known[:13]]]
        answers: dict[int, list[int]] = {}
        for group in ((0,), (1,), (2,), (1,), (0, 2), (1, 0), (2,)):
            requests = [engine.submit(prompts[at], params) for at in group]
            for at, request in zip(group, requests, strict=True):
                tokens = request.result().outputs[0].token_ids
                assert tokens == answers.setdefault(at, tokens), (group, at)
        assert answers[0] == expected["p2.greedy_ids"].tolist()[:4]
        metrics = engine.metrics()
        assert metrics["prefix_host_hit_tokens"] >= 5 * 32 and metrics["kv_blocks_swapped_in"] >= 5, metrics
        engine.stop()
        executable.close()
        device.close()
    finally:
        control.emu_hurry(0)


def test_host_kv_memory(emulated: Emulator, golden: Path) -> None:
    """From LLM's parameter to its statistics; the CPU, whose memory is the host's, refuses it."""
    from dashinfer_lite import LLM

    block = 32 << 10  # bytes
    options: dict[str, Any] = {"dtype": "fp32", "kv_memory": 3 * block, "max_batch": 2, "max_context": 64}
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    prompts = [[first, *range(20, 55)] for first in (3, 4, 5, 3)]
    found = []
    for host_kv_memory in (0, 9 * block + 1):
        with LLM(golden / "qwen2_5", "cuda", host_kv_memory=host_kv_memory, **options) as llm:
            found.append([llm.submit(prompt, params).result().outputs[0].token_ids for prompt in prompts])
            stats, info = llm.stats(), llm.info
        returned = int(host_kv_memory > 0)
        assert (stats["prefix_host_hit_tokens"], stats["kv_blocks_swapped_in"]) == (32 * returned, returned)
        assert info["host_kv_tokens"] == 32 * stats["kv_host_blocks"] == 32 * (host_kv_memory // block)
    assert found[0] == found[1]
    for device, more, reason in (
        ("cpu", {"host_kv_memory": "1MiB"}, "raise kv_memory instead"),
        ("cuda", {"host_kv_memory": 10}, "holds no block"),
        ("cuda", {"host_kv_memory": 10, "prefix_cache": False}, "leave prefix_cache on"),
        ("cuda", {"host_kv_memory": -1}, "host_kv_memory is -1"),
    ):
        with pytest.raises(DashInferError, match=reason):
            LLM(golden / "qwen2_5", device, **options, **more)


def test_sampling_like_the_cpu(emulated: Emulator) -> None:
    """Seeds, penalties, bans, logit bias, several answers: the demo model's fp32 texts are the CPU's."""
    from dashinfer_lite import LLM

    params = SamplingParams(
        temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, seed=7, n=2, max_tokens=5, repetition_penalty=1.2,
        presence_penalty=0.3, frequency_penalty=0.1, logit_bias={20: 1.5}, no_repeat_ngram_size=3, ignore_eos=True,
    )  # fmt: skip
    texts = []
    for device in ("cpu", "cuda"):
        with LLM(device=device, dtype="fp32", kv_memory="16MiB", max_batch=4) as llm:
            texts.append([sample.token_ids for sample in llm.generate("The old fox", params)[0].outputs])
    assert texts[0] == texts[1]
