"""Decoding with a model of a real shape and random weights, and the same by PyTorch: compiled, with a static cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from dashinfer_lite.cli.bench_engine import random_source
from dashinfer_lite.cli.bench_model import shape_config
from dashinfer_lite.engine import Engine
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits, Program
from dashinfer_lite.loading import Options
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.weights.loader import load_weights

PROMPT = 32  # tokens
BLOCK = 32


def decode_figures(
    device: Any, shape: str, quant: str, batches: tuple[int, ...], tokens: int
) -> Iterator[dict[str, Any]]:
    """Tokens a second of so many sequences, and the bytes of weights that a second of it reads."""
    with ExitStack() as stack:
        source = random_source(shape, Options(device="cuda", quant=quant or None))
        stack.callback(source.weights.close)
        blocks = max(batches) * -(-(PROMPT + 2 * tokens) // BLOCK)
        limits = Limits(max_tokens=max(512, PROMPT), tail_rows=max(batches), max_seqs=max(batches))
        program = build(
            source.forward,
            source.config,
            device.info,
            dtype="bf16",
            kv_dtype="bf16",
            limits=limits,
            blocks=blocks + 1,
            block_tokens=BLOCK,
            quant=source.quant,
        )
        executable = device.create(program)
        stack.callback(executable.close)
        load_weights(program, source.weights, executable)
        engine = Engine(executable, program, max_context=PROMPT + 2 * tokens)
        stack.callback(engine.stop)
        size = weight_bytes(program)
        for batch in batches:
            seconds_of(engine, program, batch, tokens)  # graphs are captured
            # The longer run less the shorter one: prompts are in both.
            taken = seconds_of(engine, program, batch, 2 * tokens) - seconds_of(engine, program, batch, tokens)
            step = max(taken, 1e-9) / tokens
            kind = {"shape": shape, "quant": quant, "B": batch}
            yield {**kind, "tokens/s": batch / step, "us": step * 1e6, "GB/s": size / step / 1e9}


def seconds_of(engine: Engine, program: Program, batch: int, tokens: int) -> float:
    """Of `batch` requests for so many tokens, each with a prompt of its own."""
    rng = np.random.default_rng()
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    prompts = [rng.integers(0, program.vocab_size, PROMPT).tolist() for _ in range(batch)]
    begun = time.monotonic()
    for request in [engine.submit(prompt, params) for prompt in prompts]:
        request.result()
    return time.monotonic() - begun


def weight_bytes(program: Program) -> int:
    """What a step reads of the weights: all matrices, but of tables a few rows."""
    bits = {"f32": 32, "f16": 16, "bf16": 16, "u8": 8, "u4": 4}
    return sum(w.n * w.k * bits[w.dtype] // 8 for w in program.weights if w.kind == "linear")


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_step(torch: Any, shape: str, batch: int, context: int, where: str) -> Callable[[], None]:
    """A decoding step of a dense model of a shape: bf16 weights, a static cache of `context` tokens, argmax.

    Layers are what all of these models have in common: a norm, attention with rope, a norm, a gated MLP.
    """
    config = shape_config(shape)
    hidden, hq, hkv = (config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    mlp, size, normed = config["intermediate_size"], hidden // hq, torch.nn.functional.rms_norm

    def made(*sizes: int) -> Any:
        return torch.randn(sizes, dtype=torch.bfloat16, device=where) * 0.02

    def layer() -> dict[str, Any]:
        return {
            "qkv": made((hq + 2 * hkv) * size, hidden),
            "o": made(hidden, hq * size),
            "up": made(2 * mlp, hidden),
            "down": made(hidden, mlp),
            "k": made(batch, hkv, context, size),
            "v": made(batch, hkv, context, size),
        }

    layers = [layer() for _ in range(config["num_hidden_layers"])]
    table, head = (made(config["vocab_size"], hidden) for _ in range(2))
    at = torch.tensor([context // 2], device=where)
    ids = torch.zeros(batch, dtype=torch.long, device=where)
    seen = (torch.arange(context, device=where) <= at)[None, None, None]
    angles = at * 1e-6 ** (torch.arange(size // 2, device=where) * 2 / size)
    cos, sin = (f(angles).repeat(2).to(torch.bfloat16) for f in (torch.cos, torch.sin))

    def turned(x: Any) -> Any:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def step() -> Any:
        x = table[ids]
        for w in layers:
            heads = (normed(x, (hidden,)) @ w["qkv"].T).view(batch, hq + 2 * hkv, 1, size)
            q, k, v = heads.split((hq, hkv, hkv), 1)
            w["k"].index_copy_(2, at, turned(k))
            w["v"].index_copy_(2, at, v)
            attend = torch.nn.functional.scaled_dot_product_attention
            y = attend(turned(q), w["k"], w["v"], attn_mask=seen, enable_gqa=True)
            x = x + y.reshape(batch, hq * size) @ w["o"].T
            gate, up = (normed(x, (hidden,)) @ w["up"].T).chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * up) @ w["down"].T
        return (normed(x, (hidden,)) @ head.T).argmax(-1)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):  # compiled, then captured
        compiled()

    def once() -> None:
        compiled()

    return once
