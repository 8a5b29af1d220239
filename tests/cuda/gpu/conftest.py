"""The tests of this folder run on a GPU, with the driver and the kernels that are installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cuda_emulator import is_emulated

from dashinfer_lite.devices import devices, open_device


def gpu_reason() -> str:
    """Why there is no GPU to test; "" where there is one."""
    status = next(status for status in devices() if status.name == "cuda")
    return "" if status.usable else status.reason


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The first GPU, through the installed dashinfer-cuda; the emulator's where `pytest -p cuda_plugin` asks for it."""
    if why := gpu_reason():
        pytest.skip(why)
    opened = open_device("cuda")
    try:
        if is_emulated(opened) and not request.config.pluginmanager.hasplugin("cuda_plugin"):
            pytest.skip("a stand-in for the driver is set")
        yield opened
    finally:
        opened.close()
