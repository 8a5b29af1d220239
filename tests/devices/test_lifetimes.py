"""Devices and programs come and go: several side by side, closed twice, used too late, never opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from every_op import NORM, X, everything
from one_op import Bench, Maker, Span

from dashinfer_lite.devices import open_device
from dashinfer_lite.errors import DeviceError


def test_two_programs_on_one_device(default_device: Any) -> None:
    """Each has its own weights, caches, activations and slots; steps may alternate."""
    rng = np.random.default_rng(0)
    benches, expected = [], []
    for _ in range(2):
        maker = Maker(default_device.info)
        x, y = maker.slot(64), maker.slot(32)
        maker.op("linear", (x,), (y,), (maker.matrix(32, 64),))
        bench = Bench(default_device, maker)
        w = rng.standard_normal((32, 64)).astype(np.float32)
        bench.matrix(0, w)
        values = rng.standard_normal((7, 64)).astype(np.float32)
        bench.put(x, values)
        benches.append(bench)
        expected.append(values.astype(np.float64) @ w.T)
    for _ in range(3):
        for bench in benches:
            bench.run(Span(7))
    for bench, want in zip(benches, expected, strict=True):
        np.testing.assert_allclose(bench.get(1, 7), want, atol=1e-4)
    benches[0].close()
    benches[1].run(Span(7))
    benches[1].close()


def test_closed_programs_and_devices(default_device: Any) -> None:
    """Closing twice is harmless; what is closed answers with an error."""
    device = open_device("cpu", threads=2)
    bench = Bench(device, everything(device.info))
    other = Bench(device, everything(device.info))
    bench.close()
    bench.close()
    calls: list[Callable[[], object]] = [
        lambda: bench.run(Span(1, blocks=(0,))),
        lambda: bench.executable.kv_read([0]),
        lambda: bench.put(X, np.zeros((1, 64))),
        lambda: bench.vector(NORM, np.zeros(64)),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match="closed"):
            call()
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.create(everything(device.info).program())
    with pytest.raises(DeviceError, match="closed"):
        other.run(Span(1, blocks=(0,)))
    other.close()


def test_devices_that_cannot_be_opened() -> None:
    """Names, tiers and numbers of threads that make no sense."""
    for name, options, reason in (
        ("cpu:1", {}, "no number"),
        ("cpu", {"isa": "mmx"}, "unknown tier 'mmx'"),
        ("cpu", {"threads": 0}, "threads=0"),
        ("cpu", {"threads": 1025}, "threads=1025"),
        ("tpu", {}, "unknown"),
    ):
        with pytest.raises(DeviceError, match=reason):
            open_device(name, **options)  # type: ignore[arg-type]
