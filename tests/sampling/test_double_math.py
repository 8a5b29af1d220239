"""The runtime's own logarithm, exponential, power, sine and cosine."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

EPSILON = 2.0**-52


def turns(native, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine of fp32 angles, in double precision."""
    sine, cosine = np.zeros(len(x)), np.zeros(len(x))
    x_at, sine_at, cosine_at = (ctypes.c_void_p(a.ctypes.data) for a in (x, sine, cosine))
    native.library.sine_cosine(x_at, len(x), sine_at, cosine_at)
    return sine, cosine


def test_logarithm(native) -> None:
    values = np.concatenate([np.geomspace(1e-300, 1e300, 501), 1 + np.geomspace(1e-12, 0.5, 100), [1.0, math.e]])
    for x in values:
        assert native.library.natural_log(x) == pytest.approx(math.log(x), rel=2 * EPSILON, abs=0)


def test_exponential(native) -> None:
    for x in np.linspace(-700, 700, 1001):
        assert native.library.natural_exp(x) == pytest.approx(math.exp(x), rel=2 * EPSILON)
    assert native.library.natural_exp(0) == 1
    assert native.library.natural_exp(-800) == 0
    assert native.library.natural_exp(800) == math.inf
    assert math.isnan(native.library.natural_exp(math.nan))


def test_power(native) -> None:
    for base in (1.0, 2.0, 10000.0, 5e5, 1e6, 1.2345e9):
        for exponent in np.linspace(0, 1.1, 56):
            assert native.library.power(base, exponent) == pytest.approx(base**exponent, rel=16 * EPSILON)


def test_sine_and_cosine(native) -> None:
    """Random angles of every size, and those next to multiples of pi/2, where the reduction has to be exact."""
    rng = np.random.default_rng(0)
    sizes = np.exp2(rng.uniform(-30, 31, 20000))
    multiples = np.arange(1, 20000) * (math.pi / 2)
    far = rng.integers(0, 2**30, 5000) * (math.pi / 2)
    x = np.concatenate([sizes, -sizes, multiples, far, [0.0, 2.0**31, -(2.0**31)]]).astype(np.float32)
    sine, cosine = turns(native, x)
    np.testing.assert_allclose(sine, np.sin(x.astype(np.float64)), rtol=2 * EPSILON, atol=0)
    np.testing.assert_allclose(cosine, np.cos(x.astype(np.float64)), rtol=2 * EPSILON, atol=0)


def test_sine_of_what_is_no_angle(native) -> None:
    sine, cosine = turns(native, np.array([np.inf, -np.inf, np.nan, 1e10], np.float32))
    assert np.isnan(sine).all()
    assert np.isnan(cosine).all()
