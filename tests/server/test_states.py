"""Loading, ready, draining, stopped, stalled; and what /metrics tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Client

from dashinfer_lite import LLM, __version__
from dashinfer_lite.server import service as service_module

Make = Callable[..., Any]


def test_before_the_model_is_there(make_app: Make, llm: LLM) -> None:
    """Alive but not ready; then both."""
    app = make_app(None)
    client = Client(app)
    assert client.get("/health").json == {"status": "ok"}
    assert client.get("/version").json == {"version": __version__}
    for reply in (client.get("/ready"), client.chat(), client.get("/v1/models"), client.complete()):
        assert reply.status == 503 and reply.error["code"] == "loading" and reply.headers["retry-after"]
    assert client.get("/metrics").status == 200
    app.state.service.open(llm)
    assert client.get("/ready").json == {"status": "ready"} and client.chat().status == 200


def test_a_model_that_cannot_be_loaded(make_app: Make) -> None:
    client = Client(make_app(None))
    client.app.state.service.failure = "/secret/folder: missing"
    for path in ("/health", "/ready", "/v1/models"):
        reply = client.get(path)
        assert reply.status == 503 and reply.error["code"] == "failed" and "secret" not in reply.body.decode()


def test_draining(client: Client) -> None:
    client.app.state.service.drain()
    assert client.get("/health").status == 200
    for reply in (client.get("/ready"), client.chat(), client.complete()):
        assert reply.status == 503 and reply.error["code"] == "draining"


def test_a_dead_engine(make_app: Make) -> None:
    other = LLM(kv_memory="4MiB", max_context=64, max_batch=1, threads=1)
    client = Client(make_app(other))
    assert client.get("/health").status == 200
    other.close()
    for path in ("/health", "/ready"):
        assert client.get(path).status == 503 and client.get(path).error["code"] == "stopped"
    assert client.chat().error["code"] == "stopped"


def test_an_engine_that_takes_no_steps(client: Client, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """With work and without steps for a minute it is not healthy; a step heals it."""
    now = 1000.0
    state = {"steps": 5, "running": 1, "waiting": 0}
    with monkeypatch.context() as patch:
        patch.setattr(service_module.time, "monotonic", lambda: now)
        patch.setattr(llm.engine, "metrics", lambda: state)
        assert client.get("/health").status == 200
        now += 59
        assert client.get("/health").status == 200
        now += 2
        assert client.get("/health").error["code"] == "stalled"
        state["steps"] += 1
        assert client.get("/health").status == 200
        now += 1000
        state["running"] = 0
        assert client.get("/health").status == 200


def values(client: Client) -> dict[str, float]:
    """Name (with labels other than the model's) → value."""
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = re.findall(r"^([a-z0-9_:]+)(?:\{(.*)\})? (\S+)$", reply.body.decode(), re.M)
    labels = [re.sub(r',?model_name="tiny_chat",?', "", label) for _, label, _ in found]
    return {f"{name}{label}": float(value) for (name, _, value), label in zip(found, labels, strict=True)}


def test_metrics(make_app: Make) -> None:
    client = Client(make_app(metrics_prefix="vllm"))
    client.chat("a fox and " * 20, max_tokens=1)
    before = values(client)
    client.chat(max_tokens=6, ignore_eos=True)
    client.chat(max_tokens=6, ignore_eos=True, stream=True)
    client.chat()
    after = values(client)

    def grown(name: str) -> float:
        return after[f"vllm:{name}"] - before.get(f"vllm:{name}", 0)

    assert grown("generation_tokens_total") == 23 and grown("prompt_tokens_total") == 54
    assert grown("prefix_cache_queries_total") == 54 and grown("engine_steps_total") >= 17
    assert grown('request_success_totalfinished_reason="length"') == 2
    assert grown('request_success_totalfinished_reason="stop"') == 1
    for name in ("time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds"):
        assert grown(f"{name}_count") == 3 and grown(f"{name}_sum") > 0
    assert grown("request_prompt_tokens_sum") == 54 and grown("request_generation_tokens_sum") == 23
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "queued_prompt_tokens"):
        assert after[f"vllm:{name}"] == 0
    assert 0 < after["vllm:kv_cache_cached_perc"] < 1
    assert after['vllm:admission_rejections_totalreason="requests"'] == 0
    assert any(name.startswith("vllm:cache_config_info") for name in after)
    assert after["process_resident_memory_bytes"] > 1e6 and after["process_open_fds"] > 3


def test_two_servers_of_one_model(make_app: Make) -> None:
    """Nothing is global: each has its own settings and counts."""
    first, second = Client(make_app(name="one")), Client(make_app(name="two"))
    assert first.get("/v1/models").json["data"][0]["id"] == "one"
    assert second.chat(model="two").status == 200 and second.chat(model="one").status == 404


def test_recommended_sampling(make_app: Make) -> None:
    """The folder says do_sample: false, so answers are greedy unless a request says otherwise."""
    body = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}], "max_tokens": 24}
    post = "/v1/chat/completions"
    greedy, plain = Client(make_app()), Client(make_app(generation_defaults=False))
    texts = {greedy.post(post, body).json["choices"][0]["message"]["content"] for _ in range(3)}
    assert texts == {
        greedy.chat(body["messages"][0]["content"], max_tokens=24).json["choices"][0]["message"]["content"]
    }  # type: ignore[index]
    drawn = {plain.post(post, {**body, "seed": seed}).json["choices"][0]["message"]["content"] for seed in range(5)}
    assert len(drawn) > 1


def test_the_page(client: Client) -> None:
    reply = client.get("/")
    assert reply.status == 200 and reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert client.get("/page/index.html").body == reply.body
