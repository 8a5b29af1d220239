"""Open devices of the tier under test, kept while a module's tests run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dashinfer_lite.devices import open_device


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str, int], Any]]:
    """opened(tier, threads) → the CPU device."""
    devices: dict[tuple[str, int], Any] = {}

    def opened(tier: str, threads: int = 2) -> Any:
        if (tier, threads) not in devices:
            devices[tier, threads] = open_device("cpu", isa=tier, threads=threads)
        return devices[tier, threads]

    yield opened
    for device in devices.values():
        device.close()
