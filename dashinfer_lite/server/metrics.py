"""GET /metrics: what a dashboard made for other engines finds here too, under our prefix."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.llm import LLM
    from dashinfer_lite.server.overload import WaitingRoom

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_REQUEST_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """The measurements of one server; each server has a registry of its own."""

    def __init__(self, prefix: str, model: str) -> None:
        self._prefix = prefix
        self._labels = {"model_name": model}
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"{prefix}:{name}", text, ["model_name"], registry=self.registry, buckets=buckets)
            return made.labels(model)

        self._ttft = histogram("time_to_first_token_seconds", "From submission to the first token.", _FIRST_TOKEN_S)
        self._tpot = histogram("request_time_per_output_token_seconds", "Mean per request after the first.", _TOKEN_S)
        self._total = histogram("e2e_request_latency_seconds", "From submission to the end.", _REQUEST_S)
        self._queue = histogram("request_queue_time_seconds", "From submission to the first step.", _REQUEST_S)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
        self._generation = histogram("request_generation_tokens", "Generated tokens a request.", _TOKENS)
        ended = Counter(
            f"{prefix}:request_success", "Answers by how they ended.", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._ended = {reason: ended.labels(model, reason) for reason in ("stop", "length", "cancelled", "error")}
        self.disconnects = Counter(
            f"{prefix}:client_disconnects", "Clients that left before their answer was complete.", ["model_name"],
            registry=self.registry,
        ).labels(model)  # fmt: skip

    def watch(self, llm: LLM, room: WaitingRoom) -> None:
        """Show an engine's counters and gauges from now on."""
        self.registry.register(_EngineCollector(self._prefix, self._labels, llm, room))

    def observe(self, request: Request) -> None:
        """Measure a request that is over, however it ended."""
        timings, usage = request.timings, request.usage
        self._prompt.observe(usage.prompt_tokens)
        self._generation.observe(usage.completion_tokens)
        if timings.queue_s is not None:
            self._queue.observe(timings.queue_s)
        if timings.ttft_s is not None:
            self._ttft.observe(timings.ttft_s)
        if timings.total_s is not None:
            self._total.observe(timings.total_s)
            longest = max(len(sample.token_ids) for sample in request.samples)
            if timings.ttft_s is not None and longest > 1:
                self._tpot.observe((timings.total_s - timings.ttft_s) / (longest - 1))
        for sample in request.samples:
            self._ended[sample.finish_reason or "cancelled"].inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class _EngineCollector(Collector):
    """Reads the engine when somebody asks."""

    def __init__(self, prefix: str, labels: dict[str, str], llm: LLM, room: WaitingRoom) -> None:
        self._prefix = prefix
        self._labels = labels
        self._llm = llm
        self._room = room

    def collect(self) -> Iterator[Metric]:
        engine = self._llm.engine.metrics()
        blocks, host_blocks = engine["kv_blocks"], max(1, engine["kv_host_blocks"])
        gauges = {
            "num_requests_running": ("Sequences that are computed.", engine["running"]),
            "num_requests_waiting": ("Requests that wait to be computed.", engine["waiting"]),
            "kv_cache_usage_perc": ("Share of the KV blocks in use, 0 to 1.", engine["kv_blocks_used"] / blocks),
            "kv_cache_cached_perc": ("Share of the KV blocks kept for prefixes.", engine["kv_blocks_cached"] / blocks),
            "host_kv_cache_usage_perc": (
                "Share of the host's KV blocks that hold prefixes.",
                engine["kv_host_blocks_used"] / host_blocks,
            ),
            "queued_prompt_tokens": ("Prompt tokens that wait.", self._room.backlog()),
            "prefill_tokens_per_second": ("Measured while requests wait.", self._room.rate.tokens_per_s or 0.0),
        }
        counters = {
            "prompt_tokens": ("Prompt tokens.", engine["prompt_tokens"]),
            "generation_tokens": ("Generated tokens.", engine["generated_tokens"]),
            "computed_tokens": ("Prompt and generated tokens that were computed.", engine["computed_tokens"]),
            "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", engine["prefix_queried_tokens"]),
            "prefix_cache_hits": ("Prompt tokens found there.", engine["prefix_hit_tokens"]),
            "prefix_cache_host_hits": ("Of these, tokens from host memory.", engine["prefix_host_hit_tokens"]),
            "kv_blocks_swapped_out": ("KV blocks copied to host memory.", engine["kv_blocks_swapped_out"]),
            "kv_blocks_swapped_in": ("KV blocks copied back.", engine["kv_blocks_swapped_in"]),
            "num_preemptions": ("Sequences that made room and came back.", engine["preemptions"]),
            "engine_steps": ("Steps.", engine["steps"]),
        }
        for name, (text, value) in gauges.items():
            yield self._family(GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=list(self._labels)), value)
        for name, (text, value) in counters.items():
            yield self._family(CounterMetricFamily(f"{self._prefix}:{name}", text, labels=list(self._labels)), value)
        yield self._rejections()
        yield self._cache_config(engine)
        yield from _process()

    def _family(
        self, family: GaugeMetricFamily | CounterMetricFamily, value: float
    ) -> GaugeMetricFamily | CounterMetricFamily:
        family.add_metric(list(self._labels.values()), value)
        return family

    def _rejections(self) -> CounterMetricFamily:
        text = "Requests that were refused, by what was full."
        family = CounterMetricFamily(f"{self._prefix}:admission_rejections", text, labels=[*self._labels, "reason"])
        for reason, count in self._room.refused.items():
            family.add_metric([*self._labels.values(), reason], count)
        return family

    def _cache_config(self, engine: dict[str, int]) -> GaugeMetricFamily:
        labels = {
            **self._labels,
            "block_size": str(engine["kv_block_tokens"]),
            "num_gpu_blocks": str(engine["kv_blocks"]),  # the name that routers read, whatever the device
        }
        family = GaugeMetricFamily(f"{self._prefix}:cache_config_info", "The KV cache.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family


def _process() -> Iterator[Metric]:
    """The process's own memory and descriptors, by Prometheus' usual names."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 — names alone are wanted
    except OSError:
        return
    yield GaugeMetricFamily(
        "process_resident_memory_bytes", "Resident memory.", value=pages * os.sysconf("SC_PAGESIZE")
    )
    yield GaugeMetricFamily("process_open_fds", "Open file descriptors.", value=descriptors)
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield CounterMetricFamily("process_cpu_seconds", "Processor time.", value=used.ru_utime + used.ru_stime)
