"""Every scaling of the rotary frequencies against its formula in double precision, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph.rope_frequencies import RopeKind, rope_frequencies

DIMS = 64
THETA = 500000.0
PLAIN = THETA ** (-np.arange(0, DIMS, 2) / DIMS)
YARN = {"rope_type": "yarn", "rope_theta": THETA, "factor": 4.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": THETA,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.5] * (DIMS // 2),
    "long_factor": [3.0] * (DIMS // 2),
}


def built(rope: dict[str, Any], max_positions: int = 131072) -> Any:
    """Frequencies of the usual size."""
    freqs = rope_frequencies(rope, DIMS, max_positions)
    assert freqs.inv_freq.dtype == np.float32
    assert freqs.inv_freq.shape == (DIMS // 2,)
    return freqs


@pytest.mark.parametrize("rope_type", [None, "default"])
def test_default(rope_type: str | None) -> None:
    freqs = built({"rope_type": rope_type, "rope_theta": THETA})
    np.testing.assert_allclose(freqs.inv_freq, PLAIN, rtol=1e-6)
    assert (freqs.kind, freqs.attention_factor) == (RopeKind.STATIC, 1.0)
    assert freqs.inv_freq[0] == 1


def test_linear() -> None:
    freqs = built({"rope_type": "linear", "rope_theta": THETA, "factor": 4})
    np.testing.assert_allclose(freqs.inv_freq, PLAIN / 4, rtol=1e-6)
    assert freqs.kind is RopeKind.STATIC


def test_dynamic() -> None:
    freqs = built({"rope_type": "dynamic", "rope_theta": THETA, "factor": 2.0}, 2048)
    np.testing.assert_allclose(freqs.inv_freq, PLAIN, rtol=1e-6)
    assert (freqs.kind, freqs.factor, freqs.theta, freqs.original_max) == (RopeKind.DYNAMIC_NTK, 2.0, THETA, 2048)
    given = built({"rope_type": "dynamic", "rope_theta": THETA, "factor": 2.0, "max_position_embeddings": 512}, 2048)
    assert given.original_max == 512


def test_llama3() -> None:
    freqs = built(LLAMA3)
    for i, (got, plain) in enumerate(zip(freqs.inv_freq, PLAIN, strict=True)):
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192:
            expected = plain / 8
        else:
            share = (8192 / wavelength - 1) / 3
            expected = plain * ((1 - share) / 8 + share)
        assert got == pytest.approx(expected, rel=2e-6), i
    ratio = freqs.inv_freq / PLAIN
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(1 / 8)
    assert ((ratio > 0.13) & (ratio < 0.99)).any()


@pytest.mark.parametrize("truncate", [None, True, False])
def test_yarn(truncate: bool | None) -> None:
    freqs = built(YARN | {"truncate": truncate, "beta_fast": None})
    low, high = (DIMS * math.log(4096 / (2 * math.pi * turns)) / (2 * math.log(THETA)) for turns in (32, 1))
    if truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    assert 0 < low < high < DIMS // 2
    ramp = np.clip((np.arange(DIMS // 2) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(freqs.inv_freq, PLAIN * (1 - ramp) + PLAIN / 4 * ramp, rtol=2e-6)
    assert freqs.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_borders_stay_in_range_and_apart() -> None:
    """Short originals push both borders to column 0: a step, not a division by zero."""
    freqs = built(YARN | {"original_max_position_embeddings": 6})
    assert np.isfinite(freqs.inv_freq).all()
    np.testing.assert_allclose(freqs.inv_freq[1:], PLAIN[1:] / 4, rtol=2e-6)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"attention_factor": 1.5, "mscale": 1.0, "mscale_all_dim": 0.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
        ({"mscale": 0.7}, 0.1 * math.log(4) + 1),
        ({"mscale": 1.0, "mscale_all_dim": 0}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
    ],
)
def test_yarn_attention_factor(extra: dict[str, Any], expected: float) -> None:
    assert built(YARN | extra).attention_factor == pytest.approx(expected)


def test_yarn_without_an_original_length_takes_the_model_s() -> None:
    given = built(YARN)
    implied = built({k: v for k, v in YARN.items() if k != "original_max_position_embeddings"}, 4096)
    assert (given.inv_freq == implied.inv_freq).all()


def test_longrope() -> None:
    freqs = built(LONG)
    np.testing.assert_allclose(freqs.inv_freq, PLAIN / 1.5, rtol=1e-6)
    np.testing.assert_allclose(freqs.long_inv_freq, PLAIN / 3, rtol=1e-6)
    assert (freqs.kind, freqs.original_max) == (RopeKind.LONG, 4096)
    assert freqs.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert built(LONG | {"attention_factor": 1.25}).attention_factor == 1.25
    assert built(LONG | {"factor": 1.0}).attention_factor == 1.0
    assert (built(LONG | {"rope_type": "su"}).inv_freq == freqs.inv_freq).all()


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "spiral"}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": "4"}, "factor"),
        ({"rope_type": "linear", "factor": True}, "factor"),
        ({"rope_type": "default", "rope_theta": -1.0}, "rope_theta"),
        ({"rope_type": "default", "rope_theta": math.nan}, "rope_theta"),
        ({"rope_type": "dynamic", "factor": 0.5}, "factor"),
        (YARN | {"rope_theta": 1.0}, "rope_theta"),
        (YARN | {"beta_fast": math.inf}, "beta_fast"),
        (YARN | {"mscale": "x", "mscale_all_dim": 1.0}, "mscale"),
        (LLAMA3 | {"low_freq_factor": None}, "low_freq_factor"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor"),
        (LONG | {"short_factor": None}, "short_factor"),
        (LONG | {"long_factor": [1.0]}, "long_factor"),
        (LONG | {"long_factor": [0.0] * (DIMS // 2)}, "long_factor"),
        (LONG | {"original_max_position_embeddings": 1}, "original_max_position_embeddings"),
    ],
)
def test_refusals_name_the_key(rope: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        rope_frequencies(rope, DIMS, 131072)


@pytest.mark.parametrize("dims", [-2, 0, 7])
def test_odd_sizes_are_refused(dims: int) -> None:
    with pytest.raises(ModelError, match="rotary"):
        rope_frequencies({}, dims, 4096)


def test_dynamic_needs_two_pairs() -> None:
    with pytest.raises(ModelError, match="rope_type"):
        rope_frequencies({"rope_type": "dynamic", "factor": 2.0}, 2, 4096)
