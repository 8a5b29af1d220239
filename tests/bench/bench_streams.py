"""Many streams at once from one server: whether all end, what an event costs it, and how soon it says that it lives.

python tests/bench/bench_streams.py --streams 256 --tokens 128
python tests/bench/bench_streams.py --model FOLDER --chat

The server and its clients share this machine. /health is asked by a third process, over and over, while streams come.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import Any

from record import add_json_option, recorder
from served import Served, Visit, serving, visit
from traffic import prompt

from dashinfer_lite.cli.bench_meter import Contention
from dashinfer_lite.cli.terminal import table

PROBE_GAP_S = 0.005


def main() -> None:
    """Serve, load, and tell."""
    args = _arguments()
    if args.probe:
        probe(args.probe)
        return
    options = ["--max-waiting", str(args.streams), *([args.model] if args.model else [])]
    record = recorder(args.json, "streams", model=args.model or "tiny_chat", streams=args.streams, tokens=args.tokens)
    with serving(*options) as served:
        _load(served, 8, 8, args, seed=0)  # the first touch of everything
        samples = [_sample(served, args, seed=number + 1) for number in range(args.samples)]
    rows = []
    for name, unit in samples[0]:
        values = [sample[name, unit] for sample in samples]
        record.add(name, unit, values, max(sample["others", "%"] for sample in samples) / 100)
        rows.append([name, f"{median(values):.4g}", f"{min(values):.4g} - {max(values):.4g}", unit])
    print(table([f"{args.streams} streams of {args.tokens} tokens", "median", "min - max", "unit"], rows))


def _sample(served: Served, args: argparse.Namespace, seed: int) -> dict[tuple[str, str], float]:
    """Figures by name and unit."""
    command = [sys.executable, __file__, "--probe", str(served.port)]
    prober = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert prober.stdout is not None
    prober.stdout.readline()  # it has begun
    before, cpu_s, loop_s, contention = served.metrics(), served.cpu_s, served.loop_s, Contention()
    begin = time.perf_counter()
    visits, seconds = _load(served, args.streams, args.tokens, args, seed)
    others = contention.share() or 0.0
    own = (served.cpu_s - cpu_s, served.loop_s - loop_s)
    asked = json.loads(prober.communicate("")[0])
    probes = [latency for at, latency in asked["times"] if begin <= at <= begin + seconds]
    after = served.metrics()
    steps = after["engine_steps_total"] - before["engine_steps_total"]
    events = sum(one.events for one in visits)
    firsts = [one.first for one in visits if one.first is not None]
    capacity_s = seconds * (os.cpu_count() or 1)
    return {
        ("streams that ended", ""): sum(one.is_complete for one in visits),
        ("events", "/s"): events / seconds,
        ("server CPU an event", "us"): 1e6 * own[0] / events,
        ("of it the event loop", "us"): 1e6 * own[1] / events,
        ("TTFT median", "ms"): 1e3 * median(firsts),
        ("step", "ms"): 1e3 * seconds / steps,
        ("/health median", "ms"): 1e3 * median(probes),
        ("/health p99", "ms"): 1e3 * quantiles(probes, n=100, method="inclusive")[-1],
        ("/health slowest", "ms"): 1e3 * max(probes),
        ("/health asked", ""): len(probes),
        ("server", "% of the machine"): 100 * own[0] / capacity_s,
        ("others", "%"): 100 * max(0.0, others - (own[0] + float(asked["cpu_s"])) / capacity_s),
    }


def _load(served: Served, streams: int, tokens: int, args: argparse.Namespace, seed: int) -> tuple[list[Visit], float]:
    """All streams at once."""
    bodies = [_body(tokens, args, seed * 100_003 + number) for number in range(streams)]
    visits = [Visit(body) for body in bodies]
    seconds = visit(served.port, visits, "/v1/chat/completions" if args.chat else "/v1/completions")
    return visits, seconds


def _body(tokens: int, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    ids = [token % args.vocabulary for token in prompt(args.prompt, seed)]
    asked: dict[str, Any] = {"prompt": ids}
    if args.chat:
        asked = {"messages": [{"role": "user", "content": " ".join(map(str, ids[: args.prompt // 4]))}]}
    return {**asked, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}


def probe(port: int) -> None:
    """Ask /health until the input ends, one connection after another; writes when and how long each took."""
    served, found = Served(port, 0), []
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], PROBE_GAP_S)[0]:
        begin = time.perf_counter()
        assert served.get("/health") == b'{"status":"ok"}'
        found.append((begin, time.perf_counter() - begin))
    print(json.dumps({"times": found, "cpu_s": time.process_time()}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FOLDER", help="default: the demo model")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--vocabulary", type=int, default=4000, help="prompts are drawn from these ids")
    parser.add_argument("--chat", action="store_true", help="chats instead of completions")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
