"""Many requests through a running engine: in this process, with an engine thread and an event loop, or over HTTP.

python tests/bench/bench_serve.py --shape qwen2.5-0.5b
python tests/bench/bench_serve.py --model FOLDER --requests 64 --rate 2
dashinfer-lite serve FOLDER & python tests/bench/bench_serve.py --url http://127.0.0.1:8000 --pid $!

Prompts of 128 to 512 tokens, answers of 64 to 128. Over HTTP a token's time is that of the event with its text.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from record import MOST_CONTENTION, Recorder, add_json_option, recorder
from traffic import Exchange, arrive, figures, mixed

from dashinfer_lite.cli.bench_engine import folder_source, open_engine, random_source
from dashinfer_lite.cli.bench_meter import Contention
from dashinfer_lite.cli.bench_model import SHAPES
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.loading import Options
from dashinfer_lite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashinfer_lite.engine import Engine

MOST_SEQUENCES = 64
TIMEOUT_S = 900


def main() -> None:
    """Serve the same lengths some times, with fresh tokens each time."""
    args = _arguments()
    with ExitStack() as stack:
        serve, record = _over_http(args) if args.url else _in_process(args, stack)
        serve(mixed(2, (8, 16), (4, 8), seed=0))  # the first touch of everything
        samples: dict[str, list[float]] = defaultdict(list)
        units, contention = {}, 0.0
        for number in range(1, args.samples + 1):
            exchanges = mixed(args.requests, tuple(args.prompts), tuple(args.answers), seed=number)
            arrive(exchanges, args.rate, seed=number)
            others = Others(args.pid)
            serve(exchanges)
            contention = max(contention, others.share())
            for name, (value, unit) in figures(exchanges).items():
                samples[name].append(value)
                units[name] = unit
        load = f"{args.requests} requests" + (f", {args.rate:g}/s" if args.rate else " at once")
        for name, values in samples.items():
            record.add(f"{load}, {name}", units[name], values, contention)
        rows = [[name, f"{median(v):.4g}", f"{min(v):.4g} - {max(v):.4g}", units[name]] for name, v in samples.items()]
        print(table([load, "median", "min - max", "unit"], rows))
        print(f"others {contention:.1%}" + ("" if contention <= MOST_CONTENTION else ": INVALID"))


class Others:
    """The share of the processors that neither this process nor the server took."""

    def __init__(self, pid: int | None) -> None:
        self._pid, self._contention, self._begin_s = pid, Contention(), time.perf_counter()
        self._server_s = _process_s(pid)

    def share(self) -> float:
        capacity_s = (time.perf_counter() - self._begin_s) * (os.cpu_count() or 1)
        return max(0.0, (self._contention.share() or 0.0) - (_process_s(self._pid) - self._server_s) / capacity_s)


def _process_s(pid: int | None) -> float:
    """Processor seconds of a process so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _in_process(args: argparse.Namespace, stack: ExitStack) -> tuple[Callable[[list[Exchange]], None], Recorder]:
    options = Options(**{name: getattr(args, name) for name in ("dtype", "quant", "head", "kv_cache", "threads")})
    source = folder_source(Path(args.model), options) if args.model else random_source(args.shape or "tiny", options)
    opened = open_engine(
        source, stack, options,
        sequences=min(args.requests, MOST_SEQUENCES), context=args.prompts[1] + args.answers[1] + 1,
    )  # fmt: skip
    opened.engine.start()
    record = recorder(
        args.json, "serve", model=source.name, dtype=opened.dtype, quant=str(source.quant), kv=opened.program.kv.dtype,
        tier=opened.info.tier, threads=opened.info.threads,
    )  # fmt: skip
    vocabulary = opened.program.vocab_size

    def serve(exchanges: list[Exchange]) -> None:
        asyncio.run(_ask_all(opened.engine, vocabulary, exchanges))

    return serve, record


async def _ask_all(engine: Engine, vocabulary: int, exchanges: list[Exchange]) -> None:
    begin = time.perf_counter()

    async def ask(exchange: Exchange) -> None:
        await asyncio.sleep(exchange.begin)
        ids = [token % vocabulary for token in exchange.prompt]
        params = SamplingParams(temperature=0, max_tokens=exchange.answer, ignore_eos=True)
        async for _ in engine.submit(ids, params).tokens():
            exchange.times.append(time.perf_counter() - begin)

    await asyncio.gather(*map(ask, exchanges))


def _over_http(args: argparse.Namespace) -> tuple[Callable[[list[Exchange]], None], Recorder]:
    url = urlsplit(args.url)

    def connection() -> http.client.HTTPConnection:
        return http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port or 8000, timeout=TIMEOUT_S)

    server = connection()
    server.request("GET", "/v1/models")
    model = json.load(server.getresponse())["data"][0]["id"]
    errors: list[str] = []

    def ask(exchange: Exchange, begin: float) -> None:
        time.sleep(exchange.begin)
        ids = [token % args.vocabulary for token in exchange.prompt]
        body = {"model": model, "prompt": ids, "max_tokens": exchange.answer, "temperature": 0}
        client = connection()
        client.request(
            "POST", "/v1/completions", json.dumps(body | {"ignore_eos": True, "stream": True}),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        answer = client.getresponse()
        if answer.status != 200:
            errors.append(f"{answer.status}: {answer.read(500).decode(errors='replace')}")
        for line in answer:
            if line.startswith(b"data: {"):
                exchange.times.append(time.perf_counter() - begin)
        client.close()

    def serve(exchanges: list[Exchange]) -> None:
        begin = time.perf_counter()
        threads = [threading.Thread(target=ask, args=(exchange, begin)) for exchange in exchanges]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors or any(not exchange.times for exchange in exchanges):
            raise SystemExit(f"{args.url}: {errors[0] if errors else 'some requests were not answered'}")

    return serve, recorder(args.json, "serve http", model=model)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--shape", choices=SHAPES)
    source.add_argument("--model", metavar="FOLDER")
    source.add_argument("--url", help="of a server with OpenAI's API")
    parser.add_argument("--pid", type=int, help="of that server: its processor time is not others'")
    parser.add_argument("--vocabulary", type=int, default=30_000, help="of its model: prompts are drawn from these ids")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--head")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompts", type=int, nargs=2, default=(128, 512), metavar=("FROM", "TO"))
    parser.add_argument("--answers", type=int, nargs=2, default=(64, 128), metavar=("FROM", "TO"))
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: all at once")
    parser.add_argument("--samples", type=int, default=3)
    add_json_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
