"""The tests of this folder run on a GPU, with the driver and the kernels that are installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from dashinfer_lite.devices import devices, open_device


def gpu_reason() -> str:
    """Why there is no GPU to test; "" where there is one."""
    status = next(status for status in devices() if status.name == "cuda")
    return "" if status.usable else status.reason


@pytest.fixture
def gpu() -> Iterator[Any]:
    """The first GPU, through the installed dashinfer-cuda."""
    if os.environ.get("DASHINFER_CUDA_DRIVER"):
        pytest.skip("a stand-in for the driver is set")
    if why := gpu_reason():
        pytest.skip(why)
    opened = open_device("cuda")
    yield opened
    opened.close()
