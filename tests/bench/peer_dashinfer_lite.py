"""DashInfer Lite as a peer among others: the figures that every runtime is asked for, under the same names.

python tests/bench/peer_dashinfer_lite.py --model FOLDER [--quant a16w8] [--threads 2] [--json FILE]
python tests/bench/peer_dashinfer_lite.py --shape qwen2.5-0.5b

prefill512, prefill2048    tokens of a prompt over the time to the first token of its answer
decode128, decode2048      tokens a second of one answer after such a prompt, the first one not counted
batch8, batch32            the same for so many sequences together, from the moment that all have their first token
mixed                      32 requests at once, prompts of 128-512, answers of 64-128: tokens/s, mean TTFT, mean TPOT
load_to_first_token        from the start of the process
peak_rss                   of the process

The engine is stepped by this one thread. Every sample has fresh prompts; of the samples, half as many again where
others took part of the machine, those are kept that were left alone most.
"""

from __future__ import annotations

import time

BEGIN_S = time.perf_counter()

import argparse  # noqa: E402  (the clock runs from the start of the process)
import resource  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from record import Recorder, add_json_option, recorder  # noqa: E402
from traffic import Exchange, figures, mixed, prompt  # noqa: E402

from dashinfer_lite import __version__  # noqa: E402
from dashinfer_lite.cli.bench_engine import folder_source, open_engine, random_source  # noqa: E402
from dashinfer_lite.cli.bench_meter import Contention  # noqa: E402
from dashinfer_lite.cli.bench_model import SHAPES  # noqa: E402
from dashinfer_lite.loading import Options  # noqa: E402
from dashinfer_lite.sampling_params import SamplingParams  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashinfer_lite.engine import Engine

CONTEXT, SEQUENCES = 2304, 32
PROMPTS, ANSWERS = (128, 512), (64, 128)
CLEAN = 0.05  # share of the machine that others may have had
EXTRA = 0.5  # further samples where there are too few clean ones
Found = list[tuple[str, float, str]]  # figures of one sample, with their units
WORKLOADS = ("prefill512", "prefill2048", "decode128", "decode2048", "batch8", "batch32", "mixed")


class Peer:
    """An engine that this thread steps, and the requests that it is asked to answer."""

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._prompts = 0

    def run(self, exchanges: list[Exchange]) -> list[Exchange]:
        """Submit all at once and step until each is answered."""
        begin = time.perf_counter()
        answers = []
        for exchange in exchanges:
            params = SamplingParams(temperature=0, max_tokens=exchange.answer, ignore_eos=True)
            ids = [token % self._vocab_size for token in exchange.prompt]
            answers.append((exchange, self._engine.submit(ids, params)))
        is_busy = True
        while is_busy:
            is_busy = self._engine.step()
            now = time.perf_counter() - begin
            for exchange, request in answers:
                exchange.times += [now] * (len(request.samples[0].token_ids) - len(exchange.times))
        for _, request in answers:
            request.result()  # raises what went wrong
        return exchanges

    def workload(self, name: str) -> Found:
        """One sample: figures with their units."""
        if name == "mixed":
            found = figures(self.run(mixed(SEQUENCES, PROMPTS, ANSWERS, self._seed())))
            wanted = {"mixed_tok_s": "throughput", "mixed_ttft_s": "TTFT mean", "mixed_tpot_s": "TPOT mean"}
            return [(own, *found[theirs]) for own, theirs in wanted.items()]
        kind, size = name.rstrip("0123456789"), int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
        rate = {"prefill": self._prefill, "decode": self._decode, "batch": self._batch}[kind](size)
        return [(name, rate, "tokens/s")]

    def _prefill(self, tokens: int) -> float:
        return tokens / self.run([self._fresh(tokens, 1)])[0].times[0]

    def _decode(self, context: int) -> float:
        times = self.run([self._fresh(context, 48 if context < 1024 else 32)])[0].times
        return (len(times) - 1) / (times[-1] - times[0])

    def _batch(self, sequences: int) -> float:
        exchanges = self.run([self._fresh(128, 64) for _ in range(sequences)])
        begin = max(exchange.times[0] for exchange in exchanges)
        end = max(exchange.times[-1] for exchange in exchanges)
        return sum(moment > begin for exchange in exchanges for moment in exchange.times) / (end - begin)

    def _fresh(self, length: int, answer: int) -> Exchange:
        return Exchange(prompt(length, self._seed() * 7919), answer)

    def _seed(self) -> int:
        self._prompts += 1
        return self._prompts


def take(work: Callable[[], Found], count: int) -> tuple[dict[tuple[str, str], list[float]], float]:
    """Samples by (figure, unit), those with the least company, and how much of that there was at most."""
    taken: list[tuple[float, Found]] = []
    while len(taken) < count * (1 + EXTRA) and sum(share <= CLEAN for share, _ in taken) < count:
        others = Contention()
        found = work()
        taken.append((others.share() or 0.0, found))
    kept = sorted(taken, key=lambda sample: sample[0])[:count]
    samples: dict[tuple[str, str], list[float]] = {}
    for _, found in kept:
        for name, value, unit in found:
            samples.setdefault((name, unit), []).append(value)
    return samples, kept[-1][0]


def report(record: Recorder, name: str, unit: str, samples: list[float], contention: float | None = None) -> None:
    """One line for a person and one for the file."""
    company = "" if contention is None else f"   (others {contention:.1%})"
    print(f"{name:<22}{median(samples):10.4g} {unit}{company}", flush=True)
    record.add(name, unit, samples, contention)


def main() -> None:
    """Load, answer a first request, then measure one workload after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shape", choices=SHAPES)
    source.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--head")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--samples", type=int, default=3)
    add_json_option(parser)
    args = parser.parse_args()
    options = Options(**{name: getattr(args, name) for name in ("dtype", "quant", "head", "kv_cache", "threads")})
    with ExitStack() as stack:
        made = folder_source(Path(args.model), options) if args.model else random_source(args.shape, options)
        opened = open_engine(made, stack, options, sequences=SEQUENCES, context=CONTEXT)
        peer = Peer(opened.engine, opened.program.vocab_size)
        peer.run([Exchange(prompt(16, 1), 2)])
        first_s = time.perf_counter() - BEGIN_S
        kind = str(made.quant) if str(made.quant) != "none" else opened.dtype
        record = recorder(
            args.json, "peer", peer=f"dashinfer-lite {__version__}", model=made.name, dtype=kind,
            kv=opened.program.kv.dtype, tier=opened.info.tier, threads=opened.info.threads,
        )  # fmt: skip
        report(record, "load_to_first_token_s", "s", [first_s])
        peer.run([Exchange(prompt(64, 2), 4)])
        for workload in args.only:
            samples, contention = take(partial(peer.workload, workload), args.samples)
            for (name, unit), values in samples.items():
                report(record, name, unit, values, contention)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report(record, "peak_rss_mb", "MB", [peak_kb / 1024])


if __name__ == "__main__":
    main()
