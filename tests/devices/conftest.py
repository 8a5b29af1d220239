"""The device under test: each tier of the CPU, or with `--device NAME` a registered one such as cuda:0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dashinfer_lite.devices import open_device


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/devices --device NAME`."""
    parser.addoption("--device", help="run the device suite on this device instead of the CPU's tiers")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --device there is one tier: that device's name. A mark on the test precedes the fixture's own parameters."""
    named = metafunc.config.getoption("device", None)
    if named and "tier" in metafunc.fixturenames:
        metafunc.definition.add_marker(pytest.mark.parametrize("tier", [named]))


@pytest.fixture
def device(tier: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An open device with two threads, where it has threads."""
    named = request.config.getoption("device", None)
    opened = open_device(named) if named else open_device("cpu", isa=tier, threads=2)
    yield opened
    opened.close()


@pytest.fixture
def default_device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One device, where all tiers share the code under test. Another device's reasons have words of their own."""
    opened = open_device(request.config.getoption("device", None) or "cpu", threads=2)
    yield opened
    opened.close()
