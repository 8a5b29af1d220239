"""GET /health, /ready, /version and /metrics. They are answered by the event loop alone, however busy the engine is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from dashinfer_lite import __version__
from dashinfer_lite.server.metrics import CONTENT_TYPE
from dashinfer_lite.server.protocol.tokens import Status, Version

if TYPE_CHECKING:
    from dashinfer_lite.server.service import Service


def health(service: Service) -> Status:
    """Whether the process is worth keeping: also while it loads or drains."""
    service.check_alive()
    return Status(status="ok")


def ready(service: Service) -> Status:
    """Whether requests should be sent here."""
    service.check_open()
    service.check_alive()
    return Status(status="ready")


def version(service: Service) -> Version:
    """Which version runs."""
    return Version(version=__version__)


def metrics(service: Service) -> Response:
    """Prometheus' text format."""
    service.measure()
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})
