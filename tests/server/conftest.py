"""The demo model behind the application, in the process and behind a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgi import Client
from devtools import Browser, find_chromium
from serving import serving_apps
from waiting import is_idle, wait_until

pytest.importorskip("dashinfer_lite._native", reason="the package was not built")
for extra in ("starlette", "uvicorn", "msgspec", "prometheus_client", "llguidance"):
    pytest.importorskip(extra, reason="needs the extra server")

from dashinfer_lite import LLM  # noqa: E402 — after what may be missing
from dashinfer_lite.server import Settings, create_app  # noqa: E402


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The demo model with a context of 512 tokens, and eight sequences at once."""
    with LLM(kv_memory="24MiB", max_context=512, max_batch=8, threads=2) as model:
        yield model


@pytest.fixture
def make_app(llm: LLM) -> Iterator[Callable[..., Any]]:
    """Makes applications over the model, or over the one that is given."""
    made: list[Any] = []

    def make(model: LLM | None = llm, **settings: Any) -> Any:
        made.append(create_app(model, Settings(**settings)))
        return made[-1]

    yield make
    for app in made:
        app.state.service.close()
    wait_until(lambda: is_idle(llm))


@pytest.fixture
def client(make_app: Callable[..., Any]) -> Client:
    """A client of an application with default settings."""
    return Client(make_app())


@pytest.fixture
def serve_app() -> Iterator[Callable[..., str]]:
    """Runs applications with uvicorn, each in a thread; gives their URL."""
    with serving_apps() as serve:
        yield serve


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of the page; each opens a tab with storage of its own."""
    path = find_chromium()
    if path is None:
        pytest.skip("needs chromium (apt install chromium)")
    with Browser(path, tmp_path_factory.mktemp("profile")) as found:
        yield found
