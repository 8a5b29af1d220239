"""The chat page's files: served under a strict policy, small, and complete in themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgi import Client

import dashinfer_lite.server
from dashinfer_lite.server import create_app

PAGE = Path(dashinfer_lite.server.__file__).parent / "page"
FILES = sorted(PAGE.iterdir())
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_served(path: Path) -> None:
    """With its type and the policy, before a model is there."""
    reply = Client(create_app()).get(f"/page/{path.name}")
    assert reply.status == 200
    assert reply.body == path.read_bytes()
    assert reply.headers["content-type"] == TYPES[path.suffix]
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert all(sources in ("'self'", "'none'", "'script'") for sources in policy.values()), policy


def test_the_page_stands_at_the_root(make_app: Callable[..., Any]) -> None:
    """Without a key too: it asks for one itself."""
    client = Client(make_app(api_keys=("key",)))
    assert client.get("/").body == (PAGE / "index.html").read_bytes()
    assert client.get("/v1/models").status == 401


def test_every_reference_is_there() -> None:
    """What a file names is a file; ids are unique, and those that scripts and labels ask for exist."""
    html = (PAGE / "index.html").read_text()
    names = {path.name for path in FILES}
    assert set(re.findall(r'(?:src|href)="page/([^"]+)"', html)) <= names
    scripts = {path.name: path.read_text() for path in FILES if path.suffix == ".js"}
    for source in scripts.values():
        assert set(re.findall(r'from "\./([^"]+)"', source)) <= names
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    wanted = {found for source in scripts.values() for found in re.findall(r'byId\("([^"]+)"\)', source)}
    wanted |= {
        found for each in re.findall(r'(?:for|aria-controls|aria-labelledby)="([^"]+)"', html) for found in [each]
    }
    assert wanted <= set(ids)


def test_it_needs_nothing_from_elsewhere() -> None:
    """No address of another place, no markup from strings, no inline script or style; and it stays small."""
    for path in FILES:
        text = path.read_text()
        addresses = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert not addresses, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
        assert len(text.splitlines()) <= 400, path
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", html)
    assert sum(path.stat().st_size for path in FILES) < 100_000
