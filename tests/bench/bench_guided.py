"""What guided answers cost: tokens a second beside free ones, the time of a mask, and of a schema that is new.

python tests/bench/bench_guided.py --shape qwen2.5-0.5b --batch 8 --tokens 128 --rounds 5

Weights and vocabulary are random: 151,643 made-up byte strings stand for a real tokenizer. Free and guided batches
alternate; both are greedy, so that nothing but the masks differs.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from record import add_json_option, recorder

from dashinfer_lite.cli.bench_engine import OpenEngine, folder_source, open_engine, random_source
from dashinfer_lite.cli.bench_meter import Contention
from dashinfer_lite.cli.bench_model import SHAPES
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.engine import Engine
from dashinfer_lite.grammar.compiler import GrammarCompiler
from dashinfer_lite.guided import Guided
from dashinfer_lite.loading import Options
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.text import load_tokenizer

PROMPT = 16
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z]{1,12}@[a-z]{1,12}\\.com$"},
        "since": {"type": "string", "format": "date"},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain", "books"]}, "maxItems": 3},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "number": {"type": "integer"}}},
    },
    "required": ["name", "age", "email", "since", "likes", "address"],
    "additionalProperties": False,
}
ENDLESS = Guided(json_schema={"type": "array", "items": PERSON, "minItems": 10_000})


class MadeUpTokenizer:
    """A byte-level vocabulary of the size of a real one: all bytes, and words of letters, digits and marks."""

    joins_bytes = True
    special_ids: frozenset[int] = frozenset()
    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        draw = random.Random(1)
        known = dict.fromkeys(bytes([byte]) for byte in range(256))
        while len(known) < vocab_size:
            letters = "etaoinshrdlucmfwypvbgkjqxzETAOINS" if draw.random() < 0.8 else '0123456789{}[]":,.-_ \n'
            known[(" " * (draw.random() < 0.4) + "".join(draw.choices(letters, k=draw.randint(1, 10)))).encode()] = None
        self.vocab_size = vocab_size
        self._tokens = list(known)

    def token_bytes(self, token: int) -> bytes:
        return self._tokens[token]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


def throughput(engine: Engine, guided: Guided | None, batch: int, tokens: int, draw: random.Random) -> float:
    """Tokens a second of a batch, after its first tokens."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, guided=guided)
    requests = [engine.submit([draw.randrange(256) for _ in range(PROMPT)], params) for _ in range(batch)]
    for request in requests:
        assert request.result().usage.completion_tokens == tokens
    first = max(request.timings.ttft_s or 0 for request in requests)
    last = max(request.timings.total_s or 0 for request in requests)
    return batch * (tokens - 1) / (last - first)


def mask_times(grammars: GrammarCompiler, vocab_size: int, tokens: int) -> list[float]:
    """Microseconds to take a token and to write the mask of the next one."""
    mask, draw, times = np.zeros(vocab_size // 32 + 1, np.uint32), np.random.default_rng(1), []
    matcher = grammars.matcher(ENDLESS)
    matcher.fill_mask(mask)
    for _ in range(tokens):
        allowed = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab_size])[0]
        token = int(draw.choice(allowed))
        begin = time.perf_counter()
        matcher.accept(token)
        matcher.fill_mask(mask)
        times.append((time.perf_counter() - begin) * 1e6)
    return times


def compile_times(grammars: GrammarCompiler, count: int) -> list[float]:
    """Milliseconds from a schema that was never seen to its first mask."""
    times = []
    for i in range(count):
        schema = {**PERSON, "properties": {f"key{i}": {"type": "string"}, **PERSON["properties"]}}
        begin = time.perf_counter()
        grammars.matcher(Guided(json_schema=schema))
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--model", help="a folder with a tokenizer of its own")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    args = parser.parse_args()
    options = Options(threads=args.threads)
    source = folder_source(Path(args.model), options) if args.model else random_source(args.shape or "tiny", options)
    with ExitStack() as stack:
        opened = open_engine(source, stack, options, sequences=args.batch, context=PROMPT + args.tokens + 1)
        measure(opened, stack, args, source.name)


def measure(opened: OpenEngine, stack: ExitStack, args: argparse.Namespace, model: str) -> None:
    """Free and guided batches in turn, then masks and compilations alone."""
    vocab_size = opened.program.vocab_size
    begin = time.perf_counter()
    tokenizer: Any = load_tokenizer(args.model) if args.model else MadeUpTokenizer(vocab_size)
    grammars = GrammarCompiler(tokenizer, vocab_size, deadline_s=60)
    grammars.compile(ENDLESS)
    print(f"tokenizer and first grammar: {time.perf_counter() - begin:.2f} s, {vocab_size} tokens")
    engine = Engine(opened.executable, opened.program, None, grammars, prefix_cache=False)
    engine.start()
    stack.callback(engine.stop)
    draw, rows, ratios, contention = random.Random(2), [], [], 0.0
    throughput(engine, ENDLESS, args.batch, args.tokens, draw)
    for i in range(args.rounds):
        others = Contention()
        free = throughput(engine, None, args.batch, args.tokens, draw)
        guided = throughput(engine, ENDLESS, args.batch, args.tokens, draw)
        ratios.append(guided / free)
        share = others.share() or 0.0
        contention = max(contention, share)
        rows.append([str(i), f"{free:.1f}", f"{guided:.1f}", f"{100 * (1 - ratios[-1]):.1f} %", f"{share:.0%}"])
    print(table(["round", "free tok/s", "guided tok/s", "cost", "others"], rows))
    print(f"cost of guiding, median: {100 * (1 - median(ratios)):.1f} %")
    masks = mask_times(grammars, vocab_size, 2000)
    cuts = quantiles(masks, n=100)
    print(f"a token and its mask: p50 {cuts[49]:.0f} µs, p90 {cuts[89]:.0f} µs, p99 {cuts[98]:.0f} µs")
    times = sorted(compile_times(grammars, 200))
    print(f"a new schema and its first mask: p50 {median(times):.2f} ms, worst of 200 {times[-1]:.2f} ms")
    record = recorder(
        args.json, "guided", model=model, tier=opened.info.tier, threads=opened.info.threads, batch=args.batch,
        tokens=args.tokens,
    )  # fmt: skip
    record.add("cost of guiding", "%", [100 * (1 - ratio) for ratio in ratios], contention)
    record.add("a token and its mask", "us", masks)
    record.add("a new schema and its first mask", "ms", times)


if __name__ == "__main__":
    main()
