"""Products, attention, drawing and decoding on a GPU, beside PyTorch in the same run where it is installed.

    python -P tests/cuda/gpu/bench.py [--tiny]

Prints JSON: one entry a figure, the fastest of several repeats. Weights of a figure are so many that no cache holds
them. `--tiny` takes sizes that the emulator can do, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path += [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "support")]

from bench_model import decode_figures, torch_step
from one_op import Bench, Maker, Span, fill_step

from dashinfer_lite.devices import open_device
from dashinfer_lite.graph.program import KvSpec

REPEATS = 20
COLD_BYTES = 256 << 20  # of weights that are read one after the other
SHAPES = ((1, 4096, 4096), (1, 28672, 4096), (16, 4096, 4096), (64, 4096, 4096), (512, 4096, 4096), (4096, 4096, 4096))
CODES = ((1, 8192, 8192), (16, 8192, 8192), (64, 8192, 8192))
PROMPTS = ((1024, 32, 8, 128), (8192, 32, 8, 128))  # tokens, heads, KV heads, head size
DRAWS = ((1, 151936), (32, 151936))
TEXTS = ((1, 128), (32, 128))  # sequences, new tokens
MODELS = (("llama-3.2-1b", "", (1, 32)), ("llama-3.2-1b", "a16w4-g128", (1,)))  # shape, quant, sequences
BLOCK = 32
CONTEXT = 128  # tokens of PyTorch's static cache


class Sizes:
    """What is measured."""

    def __init__(self, tiny: bool) -> None:
        self.repeats = 2 if tiny else REPEATS
        self.cold_bytes = 1 if tiny else COLD_BYTES
        self.shapes = ((1, 64, 64), (70, 64, 64)) if tiny else SHAPES
        self.codes = ((1, 64, 64), (20, 64, 64)) if tiny else CODES
        self.prompts = ((40, 4, 2, 64),) if tiny else PROMPTS
        self.draws = ((2, 256),) if tiny else DRAWS
        self.texts = ((2, 3),) if tiny else TEXTS
        self.models = (("tiny", "", (1, 2)), ("tiny", "a16w4-g128", (1,))) if tiny else MODELS
        self.model_tokens = 2 if tiny else 64


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    sizes = Sizes(parser.parse_args().tiny)
    device = open_device("cuda")
    found: dict[str, Any] = {"device": device.info.detail, "kernels": device.info.tier}
    for name, part in (("products", products), ("codes", codes), ("attention", attention), ("drawing", drawing)):
        found[name] = list(part(device, sizes))
    found["models"] = list(models(device, sizes))
    device.close()
    found["decode"] = list(decode(sizes))
    print(json.dumps(found))
    return 0


def seconds_of(bench: Bench, span: Span, repeats: int, clear: tuple[int, ...] = ()) -> float:
    """The fastest step, by the GPU's own clock."""
    times = []
    for at in range(repeats):
        bench.executable.wait(bench.executable.submit(fill_step(bench.step, [span], clear if at == 0 else ())))
        times.append(bench.executable.stats()["last_step_ns"])
    return min(times) * 1e-9


def products(device: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """bf16 weights and activations."""
    for rows, n, k in sizes.shapes:
        copies = math.ceil(sizes.cold_bytes / (2 * n * k))
        maker = Maker(device.info, tokens=rows, tail_rows=1, seqs=1)
        x, y = maker.slot(k, "bf16"), maker.slot(n, "bf16")
        weights = [maker.matrix(n, k, "bf16") for _ in range(copies)]
        for w in weights:
            maker.op("linear", (x, -1), (y,), (w, -1))
        bench = Bench(device, maker)
        values = np.random.default_rng(0).standard_normal((n, k), np.float32)
        for w in weights:
            bench.matrix(w, values)
        bench.put(x, values[:1, :k].repeat(rows, 0))
        taken = seconds_of(bench, Span(rows), sizes.repeats) / copies
        bench.close()
        yield product_figure("bf16", rows, n, k, taken, 2 * n * k) | torch_product(rows, n, k, copies, sizes.repeats)


def codes(device: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Quantized weights, the activations' quantization included."""
    for bits, planes in ((8, 2), (4, 2), (8, 1)):
        for rows, n, k in sizes.codes:
            size = n * k * bits // 8
            copies = math.ceil(sizes.cold_bytes / size)
            maker = Maker(device.info, tokens=rows, tail_rows=1, seqs=1)
            x, y = maker.slot(k), maker.slot(n)
            group = min(128, k)
            operands = maker.quantize(x, k, group=group, planes=planes)
            weights = [maker.quantized(n, k, bits=bits, group=group) for _ in range(copies)]
            for w in weights:
                maker.op("linear", (operands[0], -1, operands[1]), (y,), (w, -1))
            bench = Bench(device, maker)
            values = np.random.default_rng(0).standard_normal((n, k), np.float32)
            for w in weights:
                bench.matrix(w, values)
            bench.put(x, values[:1].repeat(rows, 0))
            taken = seconds_of(bench, Span(rows), sizes.repeats) / copies
            bench.close()
            yield product_figure(f"a{8 * planes}w{bits} g{group}", rows, n, k, taken, size)


def product_figure(kind: str, rows: int, n: int, k: int, seconds: float, weight_bytes: int) -> dict[str, Any]:
    shares = {"GB/s": weight_bytes / seconds / 1e9, "TFLOP/s": 2 * rows * n * k / seconds / 1e12}
    return {"kind": kind, "T": rows, "N": n, "K": k, "us": seconds * 1e6, **shares}


def attention(device: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A prompt's attention, causal, from a cache in bf16 and of codes."""
    for tokens, hq, hkv, size in sizes.prompts:
        for cache in ("bf16", "u8"):
            blocks = -(-tokens // BLOCK)
            kv = KvSpec(1, hkv, size, cache, BLOCK, blocks)
            maker = Maker(device.info, tokens=tokens, tail_rows=1, seqs=1, kv=kv)
            head = maker.pad_head(size)
            kind: Any = "bf16" if cache == "bf16" else "f32"
            q, y = maker.slot(hq * head), maker.slot(hq * head, kind)
            k, v = maker.slot(hkv * head), maker.slot(hkv * head)
            maker.op("kv_write", (k, v), Hkv=hkv, D=size)
            maker.op("attention", (q,), (y,), (-1, -1), Hq=hq, Hkv=hkv, D=size, scale=size**-0.5)
            bench = Bench(device, maker, max_blocks=blocks)
            rng = np.random.default_rng(0)
            for slot in (q, k, v):
                bench.put(slot, rng.standard_normal((tokens, maker.slots[slot].cols), np.float32))
            span = Span(tokens, blocks=tuple(range(blocks)))
            taken = seconds_of(bench, span, sizes.repeats, tuple(range(blocks)))
            bench.close()
            done = 2 * tokens * (tokens + 1) * hq * size
            figure = {"cache": cache, "T": tokens, "heads": [hq, hkv, size], "us": taken * 1e6}
            yield figure | {"TFLOP/s": done / taken / 1e12} | torch_attention(tokens, hq, hkv, size, sizes.repeats)


def drawing(device: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A token of each row with top-k and top-p: the sampler alone."""
    for rows, vocab in sizes.draws:
        maker = Maker(device.info, tokens=rows, tail_rows=rows, seqs=rows, vocab=vocab)
        x, y, logits = maker.slot(32), maker.slot(vocab), maker.slot(vocab, rows="R")
        w = maker.matrix(vocab, 32)
        maker.op("linear", (x, -1), (y,), (w, -1))
        maker.tail_op("gather_rows", (y,), (logits,))
        maker.tail_op("sample", (logits,), V=vocab)
        bench = Bench(device, maker)
        bench.step.out_logits = None
        rng = np.random.default_rng(0)
        bench.matrix(w, rng.standard_normal((vocab, 32), np.float32))
        bench.put(x, rng.standard_normal((rows, 32), np.float32))
        bench.executable.profile(True)
        for at in range(sizes.repeats):
            step = fill_step(bench.step, [Span(rows, logits=tuple(range(rows)))])
            step.sample["temperature"][:rows] = 0.8
            step.sample["top_p"][:rows] = 0.9
            step.sample["top_k"][:rows] = 50
            step.sample["seed"][:rows] = at
            bench.executable.wait(bench.executable.submit(step))
        yield {"R": rows, "V": vocab, "us": bench.executable.stats()["ns_sample"] / sizes.repeats / 1e3}
        bench.close()


def decode(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Tokens a second of the demo model: what launches and the host cost, for the model itself is nothing."""
    from dashinfer_lite import LLM, SamplingParams

    for batch, tokens in sizes.texts:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        with LLM(device="cuda", kv_memory="64MiB", max_batch=batch) as llm:
            llm.generate(["Once upon a time"] * batch, params)
            begun = time.monotonic()
            llm.generate(["Once upon a time"] * batch, params)
            yield {"batch": batch, "tokens/s": tokens * batch / (time.monotonic() - begun)}


def models(device: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Decoding with real shapes; PyTorch's step beside those that are not quantized."""
    for shape, quant, batches in sizes.models:
        for figure in decode_figures(device, shape, quant, batches, sizes.model_tokens):
            yield figure | ({} if quant else torch_decode(shape, figure["B"], sizes.repeats))


# ---- beside PyTorch --------------------------------------------------------------------------------------------------


def torch_seconds(make: Callable[[Any], Callable[[], None]], repeats: int) -> float | None:
    """The fastest of what `make(torch)` gives, by the GPU's clock; None without PyTorch or its GPU."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    if not torch.cuda.is_available():
        return None
    work, events = make(torch), [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    times = []
    for _ in range(repeats):
        events[0].record()
        work()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    return float(min(times)) * 1e-3


def torch_product(rows: int, n: int, k: int, copies: int, repeats: int) -> dict[str, float]:
    """The same by torch.matmul, which is cuBLAS."""

    def make(torch: Any) -> Callable[[], None]:
        weights = [torch.randn((n, k), dtype=torch.bfloat16, device="cuda") for _ in range(copies)]
        x = torch.randn((rows, k), dtype=torch.bfloat16, device="cuda")

        def work() -> None:
            for w in weights:
                torch.matmul(x, w.T)

        return work

    taken = torch_seconds(make, repeats)
    return {} if taken is None else {"torch_us": taken / copies * 1e6}


def torch_attention(tokens: int, hq: int, hkv: int, size: int, repeats: int) -> dict[str, float]:
    """The same by scaled_dot_product_attention, from contiguous keys and values."""

    def make(torch: Any) -> Callable[[], None]:
        q, k, v = (torch.randn((1, h, tokens, size), dtype=torch.bfloat16, device="cuda") for h in (hq, hkv, hkv))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True)

    taken = torch_seconds(make, repeats)
    return {} if taken is None else {"torch_us": taken * 1e6}


def torch_decode(shape: str, batch: int, repeats: int) -> dict[str, Any]:
    """A step of the same shape, compiled; or why PyTorch has none, which spoils nothing else."""
    try:
        taken = torch_seconds(lambda torch: torch_step(torch, shape, batch, CONTEXT, "cuda"), repeats)
    except Exception as error:
        return {"torch": f"{type(error).__name__}: {error}"[:200]}
    return {} if taken is None else {"torch_us": taken * 1e6}


if __name__ == "__main__":
    sys.exit(main())
