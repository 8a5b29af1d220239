"""Philox4x32-10 against the known answers that its authors publish with Random123."""

from __future__ import annotations

import ctypes

import pytest

from dashinfer_lite.devices.sampling_reference import philox4x32, token_bits

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(native, counter: tuple, key: tuple, expected: tuple) -> None:
    assert philox4x32(counter, key) == expected
    words = (ctypes.c_uint32 * 4)(*counter)
    native.library.philox(words, (ctypes.c_uint32 * 2)(*key))
    assert tuple(words) == expected


def test_a_token_s_bits_are_the_first_two_words() -> None:
    seed = 0x0123456789ABCDEF
    words = philox4x32((7, 9, 0, 0), (0x89ABCDEF, 0x01234567))
    assert token_bits(seed, 7, 9) == words[1] << 32 | words[0]
