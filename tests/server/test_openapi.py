"""/openapi.json against the server: by itself, and with schemathesis."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgi import Client

from dashinfer_lite import LLM
from dashinfer_lite.server.openapi import POSTS


def references(value: Any) -> set[str]:
    """The names of all components that are referred to."""
    if isinstance(value, dict):
        own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_the_document(client: Client) -> None:
    """Every route stands in it, and every reference leads somewhere."""
    document = client.get("/openapi.json").json
    assert document["openapi"] == "3.2.0"
    routes = {route.path.replace(":path", "") for route in client.app.routes} - {"/", "/page/{name}", "/openapi.json"}
    assert set(document["paths"]) == routes
    assert references(document) <= set(document["components"]["schemas"])
    for path in POSTS:
        operation = document["paths"][path]["post"]
        assert operation["summary"] and operation["description"]
        assert {"200", "400", "401", "413", "415", "429", "503"} <= set(operation["responses"])


@pytest.mark.parametrize(
    "phases",
    [
        ("--phases", "fuzzing", "--max-examples", "4"),
        pytest.param(("--phases", "coverage,fuzzing", "--max-examples", "100"), marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_schemathesis(
    make_app: Callable[..., Any], serve_app: Callable[..., str], llm: LLM, tmp_path: Path, phases: tuple[str, ...]
) -> None:
    """Requests made from the schemas: no 5xx, answers as described, nothing invalid accepted.

    That what a schema allows is always accepted cannot be: an empty prompt, or a tool that is not offered, is refused.
    """
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
    if program is None:
        pytest.skip("needs schemathesis")
    with LLM(kv_memory="8MiB", max_context=48, max_batch=8, threads=2) as small:
        url = serve_app(make_app(small, max_waiting=64))
        command = [
            program, "run", f"{url}/openapi.json", "--exclude-checks", "positive_data_acceptance", "--no-color",
            "--workers", "2", "--generation-deterministic", "--request-timeout", "100", *phases,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout[-6000:]
        assert Client(make_app(small)).get("/health").status == 200
