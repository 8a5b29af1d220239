"""An OpenAI-compatible HTTP server over one model; needs the extra `server`.

    from dashinfer_lite import LLM
    from dashinfer_lite.server import Settings, create_app

    app = create_app(LLM("folder"), Settings())  # an ASGI application: mount it, or run it with any ASGI server

`dashinfer-lite serve` runs it on the loopback interface. Nothing outside this room imports it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dashinfer_lite.server.app import create_app
    from dashinfer_lite.server.settings import Settings

__all__ = ["Settings", "create_app"]

_HOME = {"Settings": "settings", "create_app": "app"}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dashinfer_lite.server.{_HOME[name]}"), name)
