"""Keys, hosts, sizes, methods, and errors that tell nothing they should not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgi import WEATHER, Client

from dashinfer_lite import LLM, DeviceError, ModelError
from dashinfer_lite.server import guards
from dashinfer_lite.server.errors import as_api_error
from dashinfer_lite.server.openapi import POSTS

Make = Callable[..., Any]
GETS = ("/v1/models", "/v1/models/tiny_chat", "/version", "/metrics", "/openapi.json", "/nowhere", "/page", "//health")


def test_keys_on_every_route(make_app: Make) -> None:
    """All routes of the application but health and the page want a key; unknown paths do as well."""
    client = Client(make_app(api_keys=("first", "second")))
    for path in ("/health", "/ready", "/", "/page/index.html"):
        assert client.get(path).status == 200
    known = {route.path for route in client.app.routes}
    assert {"/health", "/ready", "/", "/page/{name}", *POSTS} < known
    for path in (*(path for path in known if not guards.is_open(path)), *GETS):
        for key in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "first"},
            {"Authorization": "Basic first"},
        ):
            for reply in (client.get(path, headers=key), client.post(path, {}, headers=key)):
                assert reply.status == 401 and reply.error["code"] == "invalid_api_key", path
                assert reply.headers["www-authenticate"] == "Bearer"
    for key in ("first", "second"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status == 200
        assert client.get("/metrics", headers={"Authorization": f"bearer {key}"}).status == 200


def test_keys_are_compared_in_constant_time(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of equal length, each of them, whichever key is right."""
    seen: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(guards.hmac, "compare_digest", compare)
    client = Client(make_app(api_keys=("a", "b" * 100, "c")))
    for key in ("a", "c", "", "b" * 1000):
        seen.clear()
        client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert seen == [(32, 32)] * 3


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "localhost@evil",
        "",
        "127.0.0.1.evil.example",
        "[::1].evil",
        "localhost:80@evil",
        "[::1",
        "a/b",
    ],
)
def test_other_hosts(make_app: Make, host: str) -> None:
    """A name that is not ours is refused, on whatever path: a page elsewhere may have pointed it at this machine."""
    client = Client(make_app(allowed_hosts=("localhost", "127.0.0.1", "[::1]"), api_keys=("k",)))
    for path in ("/health", "/v1/models", "/"):
        assert client.get(path, headers={"Host": host}).error["code"] == "unknown_host"
    for own in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80", "LOCALHOST"):
        assert client.get("/health", headers={"Host": own}).status == 200
        assert client.get("/v1/models", headers={"Host": own}).status == 401  # the host gives no key


def test_a_path_is_what_was_sent(make_app: Make) -> None:
    """Neither the Host header nor a mounted application's root changes which path wants a key."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = make_app(api_keys=("k",))
    outer = Client(Starlette(routes=[Mount("/llm", inner)]))
    assert outer.get("/llm/health").status == 200
    assert outer.get("/llm/v1/models").status == 401
    assert outer.get("/llm/v1/models", headers={"Authorization": "Bearer k"}).status == 200
    for host in ("localhost/health", "localhost/health?", "x@localhost:80/health#"):
        assert Client(inner).get("/v1/models", headers={"Host": host}).status == 401


def test_sizes(make_app: Make) -> None:
    client = Client(make_app(max_body=1000, max_headers=2000))
    big = client.chat("x" * 1000)
    assert big.status == 413 and "1000 bytes" in big.error["message"] and big.headers["connection"] == "close"
    assert client.post("/tokenize", b"x" * 1001, headers={"Content-Length": "5"}).status == 413
    assert client.post("/tokenize", b"x" * 1001, headers={"Content-Length": "-5"}).status == 413
    assert client.post("/tokenize", b"x", headers={"Content-Length": "9" * 400}).status == 413
    assert client.chat(max_tokens=1).status == 200
    assert client.get("/health", headers={"X-Long": "x" * 2000}).status == 431


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_that_says_so(client: Client, kind: str) -> None:
    """A browser sends forms from any page without asking; JSON it must ask for."""
    assert client.post("/tokenize", {"prompt": "x"}, headers={"Content-Type": kind}).status == 415
    assert client.post("/tokenize", {"prompt": "x"}, headers={"Content-Encoding": "gzip"}).status == 415
    assert (
        client.post("/tokenize", {"prompt": "x"}, headers={"Content-Type": "Application/JSON; charset=x"}).status == 200
    )


def test_other_origins(make_app: Make) -> None:
    """Closed to other pages, unless they are allowed."""
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    closed, allowed = Client(make_app()), Client(make_app(allowed_origins=("https://page.example",), api_keys=("k",)))
    assert "access-control-allow-origin" not in closed.get("/v1/models", headers=ask).headers
    reply = allowed.get("/v1/models", headers={**ask, "Authorization": "Bearer k"})
    assert reply.headers["access-control-allow-origin"] == "https://page.example"


def test_methods_and_paths(client: Client) -> None:
    for path in POSTS:
        reply = client.get(path)
        assert reply.status == 405 and reply.headers["allow"] == "POST" and reply.error["message"]
    for path in ("/health", "/v1/models", "/metrics", "/"):
        assert client.post(path, {}).status == 405
    for path in ("/v1", "/v1/nothing", "/v1/models/", "/page/", "/page/../service.py", "/page/none.html"):
        assert client.get(path).status == 404 and client.get(path).error["type"] == "not_found_error", path
    assert client.get("/v1/models/another").error["code"] == "model_not_found"
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ):
        reply = client.post(path, {**body, "model": "another"})
        assert reply.status == 404 and reply.error["param"] == "model"


def test_errors_tell_no_paths(client: Client, llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    """Words meant for clients lose the model's folder; others become a number that the log explains."""
    folder = llm.info["model"]
    bad = client.chat(messages=[{"role": "tool", "content": None, "tool_calls": [], "tool_call_id": "x"}])
    assert folder not in bad.body.decode()
    with caplog.at_level(logging.ERROR):
        for error in (
            ModelError(f"{folder}/x is broken"),
            DeviceError(f"at {folder}"),
            OSError(2, "no", folder),
            KeyError(folder),
        ):
            told = as_api_error(error, folder)
            assert told.status == 500 and "/" not in told.message
            assert told.message.rpartition("error ")[2].rstrip(")") in caplog.text
    reply = client.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": None}], "tools": [WEATHER] * 2}
    )
    assert reply.status == 400 and folder not in reply.body.decode() and "/tmp" not in reply.body.decode()


def test_prompts_are_not_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client.chat("a secret fox", max_tokens=4)
        client.complete("a secret fox", max_tokens=4, stream=True)
        client.chat("a secret fox", temperature=9)
        client.post("/v1/completions", b'{"prompt": "a secret fox"')
    assert "secret" not in caplog.text


def test_a_mistake_of_ours(client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Becomes a 500 in the usual form; the server goes on."""
    service = client.app.state.service
    monkeypatch.setattr(service, "submit", lambda *_args, **_options: 1 / 0)
    monkeypatch.setattr(service, "measure", lambda: 1 / 0)
    for reply in (client.chat(), client.get("/metrics")):
        assert reply.status == 500 and reply.error["code"] == "internal_error"
        assert "ZeroDivisionError" in caplog.text and "division" not in reply.body.decode()
    monkeypatch.undo()
    assert client.chat().status == 200
