"""Cosines and sines: the native table against its NumPy twin, and both against double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dashinfer_lite.devices.rope_reference import position_rows, rope_table
from dashinfer_lite.graph.rope_frequencies import RopeFrequencies, RopeKind, rope_frequencies

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.5}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1] * 12,
    "long_factor": [2.0, 9.5] * 12,
}
Table = Callable[..., np.ndarray]


def plain(dims: int) -> RopeFrequencies:
    """Unscaled frequencies."""
    return rope_frequencies({"rope_type": "default", "rope_theta": 500000.0}, dims, 4096)


def assert_equal_tables(table: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    """The table is cos | sin | zeros; NumPy's sine may round otherwise in one case of many millions."""
    half = cos.shape[1]
    np.testing.assert_allclose(table[:, :half], cos, rtol=1.2e-7, atol=0)
    np.testing.assert_allclose(table[:, half : 2 * half], sin, rtol=1.2e-7, atol=0)
    assert (np.concatenate([cos, sin], axis=1) != table[:, : 2 * half]).mean() < 1e-3
    assert not table[:, 2 * half :].any()


@pytest.mark.parametrize("tokens", [1, 5, 31, 32, 33, 100])
@pytest.mark.parametrize("dims", [2, 8, 48, 64, 128, 256])
def test_static(native_rope: Table, tokens: int, dims: int) -> None:
    freqs = plain(dims)
    positions = np.random.default_rng(tokens).integers(0, 2**20, (1, tokens))
    prompt_len = np.full(tokens, 7)
    assert_equal_tables(native_rope(freqs, positions, prompt_len), *rope_table(freqs, positions, prompt_len))


def test_every_position_is_as_exact_as_fp32_allows(native_rope: Table) -> None:
    freqs = plain(64)
    positions = np.array([[0, 1, 2, 1000, 2**20, 2**24 + 1, 2**31 - 1, -5]])
    table = native_rope(freqs, positions, np.zeros(8, np.int64))
    angles = (positions.T.astype(np.float32) * freqs.inv_freq).astype(np.float64)
    assert (table[:, :32] == np.cos(angles).astype(np.float32)).all()
    assert (table[:, 32:] == np.sin(angles).astype(np.float32)).all()


def test_a_share_of_the_rows_is_the_same_rows(native_rope: Table) -> None:
    freqs = rope_frequencies(DYNAMIC, 48, 32)
    positions = np.arange(70)[None]
    prompt_len = np.repeat([10, 90, 40], [20, 30, 20])
    whole = native_rope(freqs, positions, prompt_len)
    for first, last in ((0, 1), (19, 21), (33, 70), (69, 70), (5, 5)):
        part = native_rope(freqs, positions, prompt_len, span=(first, last))
        assert (part[first:last] == whole[first:last]).all()
        assert (np.delete(part, np.s_[first:last], axis=0) == 777).all()


def test_attention_factor_multiplies(native_rope: Table) -> None:
    freqs = plain(32)
    louder = RopeFrequencies(RopeKind.STATIC, freqs.inv_freq, attention_factor=1.2079)
    positions, prompt_len = np.arange(40)[None], np.zeros(40, np.int64)
    expected = native_rope(freqs, positions, prompt_len) * np.float32(1.2079)
    assert (native_rope(louder, positions, prompt_len) == expected).all()


def test_dynamic_base_follows_prompt_and_position(native_rope: Table) -> None:
    freqs = rope_frequencies(DYNAMIC, 48, 32)
    positions = np.array([[0, 31, 31, 32, 32, 500, 500]])
    prompt_len = np.array([32, 10, 33, 10, 33, 10, 1000])
    table = native_rope(freqs, positions, prompt_len)
    assert_equal_tables(table, *rope_table(freqs, positions, prompt_len))
    for t, n in enumerate([32, 32, 33, 33, 33, 501, 1000]):
        base = 10000.0 if n <= 32 else 10000.0 * (2.5 * n / 32 - 1.5) ** (48 / 46)
        angles = positions[0, t] * base ** (-np.arange(0, 48, 2) / 48)
        np.testing.assert_allclose(table[t, :24], np.cos(angles), atol=3e-5)
    assert (table[3] == table[4]).all()
    assert (table[5] != table[6]).any()


def test_prompt_base_follows_the_prompt_alone(native_rope: Table) -> None:
    """It grows with each doubling of the original length, and positions beyond the prompt change nothing."""
    freqs = rope_frequencies({"rope_type": "prompt_ntk", "original_max_position_embeddings": 32}, 48, 128)
    positions = np.array([[0, 31, 900, 31, 31, 31, 900, 900]])
    prompt_len = np.array([1, 32, 32, 33, 64, 65, 129, 128])
    table = native_rope(freqs, positions, prompt_len)
    assert_equal_tables(table, *rope_table(freqs, positions, prompt_len))
    for t, growth in enumerate([1, 1, 1, 3, 3, 7, 15, 7]):
        exact = max(2.0 ** math.ceil(math.log2(prompt_len[t] / 32) + 1) - 1, 1.0)
        assert growth == exact
        base = 10000.0 * growth ** (48 / 46)
        angles = positions[0, t] * base ** (-np.arange(0, 48, 2) / 48)
        np.testing.assert_allclose(table[t, :24], np.cos(angles), atol=6e-5)


@pytest.mark.parametrize("attention", [1.0, 1.25])
def test_logn_makes_later_rows_larger(native_rope: Table, attention: float) -> None:
    freqs = RopeFrequencies(RopeKind.STATIC, plain(48).inv_freq, attention_factor=attention)
    positions, prompt_len = np.array([[0, 5, 31, 32, 33, 1000, 2**31 - 1]]), np.zeros(7, np.int64)
    table = native_rope(freqs, positions, prompt_len, logn=32)
    assert_equal_tables(table, *rope_table(freqs, positions, prompt_len, logn=32))
    without = native_rope(freqs, positions, prompt_len)
    factors = np.maximum(np.log(positions[0] + 1.0) / math.log(32), 1.0)
    np.testing.assert_allclose(table, without * factors[:, None], rtol=3e-7)
    assert (table[:3] == without[:3]).all() and (table[3:, :24] != without[3:, :24]).all(axis=1)[:3].all()


def test_two_axes_have_equal_frequencies_in_fp16() -> None:
    freqs = rope_frequencies({"rope_type": "two_axes", "rope_theta": 10000.0}, 64, 2048)
    wanted = (10000.0 ** (-np.arange(0, 32, 2) / 32)).astype(np.float16).astype(np.float32)
    assert (freqs.inv_freq == np.tile(wanted, 2)).all()


def test_long_rope_switches_frequencies(native_rope: Table) -> None:
    freqs = rope_frequencies(LONG, 48, 128)
    positions = np.array([[3, 3, 31, 32]])
    prompt_len = np.array([32, 33, 1, 1])
    table = native_rope(freqs, positions, prompt_len)
    assert_equal_tables(table, *rope_table(freqs, positions, prompt_len))
    assert freqs.long_inv_freq is not None
    for t, inv_freq in enumerate([freqs.inv_freq, freqs.long_inv_freq, freqs.inv_freq, freqs.long_inv_freq]):
        expected = np.cos(positions[0, t] * inv_freq.astype(np.float64)) * freqs.attention_factor
        np.testing.assert_allclose(table[t, :24], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("half", "sections", "interleaved", "expected"),
    [
        (6, (), False, [0] * 6),
        (6, (1, 2, 3), False, [0, 1, 1, 2, 2, 2]),
        (4, (2, 2), False, [0, 0, 1, 1]),
        (5, (1, 1, 1), False, [0, 1, 2, 0, 0]),
        (8, (4, 2, 2), True, [0, 1, 2, 0, 1, 2, 0, 0]),
        (9, (5, 3, 1), True, [0, 1, 2, 0, 1, 0, 0, 1, 0]),
    ],
)
def test_sections(native_rope: Table, half: int, sections: tuple, interleaved: bool, expected: list[int]) -> None:
    assert position_rows(half, sections, interleaved) == expected
    freqs = plain(2 * half)
    positions = np.random.default_rng(half).integers(0, 1000, (3, 40))
    prompt_len = np.zeros(40, np.int64)
    table = native_rope(freqs, positions, prompt_len, sections, interleaved)
    assert_equal_tables(table, *rope_table(freqs, positions, prompt_len, sections, interleaved))
    angles = (positions[expected].T.astype(np.float32) * freqs.inv_freq).astype(np.float64)
    np.testing.assert_allclose(table[:, half : 2 * half], np.sin(angles), atol=1e-7)


def test_a_step_with_fewer_rows_uses_the_first(native_rope: Table) -> None:
    freqs = plain(24)
    positions, prompt_len = np.arange(9)[None], np.zeros(9, np.int64)
    expected = native_rope(freqs, positions, prompt_len)
    for interleaved in (False, True):
        assert (native_rope(freqs, positions, prompt_len, (4, 4, 4), interleaved) == expected).all()
        cos, sin = rope_table(freqs, positions, prompt_len, (4, 4, 4), interleaved)
        assert (np.concatenate([cos, sin], axis=1) == expected[:, :24]).all()
