"""The floating-point mode: programs run in their own, callers keep theirs."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from arrangements import Runner, Text, runner, small
from one_op import Bench, Maker, Span

from dashinfer_lite.errors import DeviceError

Opened = Callable[..., Any]
UPWARD, DOWNWARD, TOWARD_ZERO = 0x800, 0x400, 0xC00  # fenv.h of x86-64
MODES = {"upward": UPWARD, "downward": DOWNWARD, "toward zero": TOWARD_ZERO}


def subnormals_work() -> bool:
    """Whether the calling thread computes with subnormal numbers."""
    tiny = np.float32(1e-40)
    halves = np.full(64, 1e-40, np.float32) * np.float32(0.5)
    return bool(tiny * np.float32(0.5) > 0 and tiny + tiny > tiny and (halves > 0).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_mode_survives(tier: str, opened: Opened, threads: int) -> None:
    """After a step, a refused step and the writing of weights subnormal numbers are numbers."""
    assert subnormals_work()
    with runner(opened(tier, threads), small("qwen3"), "bf16", "bf16") as mine:
        assert subnormals_work(), "after loading"
        mine.run((Text(list(range(40)), [0, 1]), 40))
        assert subnormals_work(), "after a step"
        with pytest.raises(DeviceError):
            mine.run((Text(list(range(40)), [0, 99]), 40))
        assert subnormals_work(), "after a refused step"


@pytest.fixture
def rounding() -> Iterator[Callable[[int], None]]:
    """rounding(mode) sets the calling thread's rounding; nearest again at the end."""
    if platform.machine() != "x86_64":
        pytest.skip("fenv.h has other numbers elsewhere")
    libc = ctypes.CDLL(None)

    def rounding(mode: int) -> None:
        assert libc.fesetround(mode) == 0

    yield rounding
    rounding(0)


def observed() -> str:
    """How the calling thread rounds fp32 sums."""
    one, tiny = np.float32(1), np.float32(2.0**-30)
    match bool(one + tiny > one), bool(one - tiny < one), bool(-one - tiny < -one):
        case True, False, False:
            return "upward"
        case False, True, True:
            return "downward"
        case False, True, False:
            return "toward zero"
        case _:
            return "to nearest"


def answer(mine: Runner) -> Any:
    """Logits as bits of a short text."""
    return mine.whole(Text([5, 80, 3, 1, 130, 7], [3]))


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_rounding_has_no_say(tier: str, opened: Opened, rounding: Callable[[int], None], mode: str) -> None:
    """Bits are the same under any mode of the caller, who finds it again afterwards."""
    for threads in (1, 2):
        with runner(opened(tier, threads), small("qwen3"), "f32", "f32") as mine:
            expected = answer(mine)
            rounding(MODES[mode])
            before, got, after = observed(), answer(mine), observed()
            rounding(0)
            assert before == after == mode
            assert observed() == "to nearest"
            np.testing.assert_array_equal(got, expected)


def test_subnormal_numbers_are_zero(tier: str, opened: Opened) -> None:
    """On the way in and out, in every row, whichever thread it falls to, as the matrix unit does it."""
    device = opened(tier, 2)
    for dtype, wide in (("bf16", False), ("f32", False), ("f32", True)):
        maker = Maker(device.info)
        x_slot, y_slot = maker.slot(32, "bf16" if dtype == "bf16" else "f32"), maker.slot(32)
        weight = maker.matrix(32, 32, dtype)
        maker.op("linear", (x_slot,), (y_slot,), (weight,))
        bench = Bench(device, maker)
        bench.matrix(weight, np.eye(32) * (2.0**-60 if wide else 1.0))
        for rows in (1, 20, 64):
            x = np.full((rows, 32), 2.0**-80 if wide else 2.0**-130, np.float32)
            x[:, 0] = 1.0
            bench.put(x_slot, x)
            bench.run(Span(rows))
            got = bench.get(y_slot, rows)
            assert (got[:, 0] == (2.0**-60 if wide else 1.0)).all()
            assert not got[:, 1:].any()
        bench.close()


def test_half_precision_subnormals_are_numbers(tier: str, opened: Opened) -> None:
    """fp16 weights below 2⁻¹⁴ are ordinary fp32 numbers once widened."""
    device = opened(tier, 2)
    maker = Maker(device.info)
    x_slot, y_slot = maker.slot(32), maker.slot(32)
    weight = maker.matrix(32, 32, "f16")
    maker.op("linear", (x_slot,), (y_slot,), (weight,))
    bench = Bench(device, maker)
    values = np.arange(1024).reshape(32, 32) * np.float32(2.0**-24)
    bench.matrix(weight, values, source="f16")
    bench.put(x_slot, np.eye(32))
    bench.run(Span(32))
    np.testing.assert_array_equal(bench.get(y_slot, 32).T, values)
    bench.close()
