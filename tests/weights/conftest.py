"""Shared by the weight tests: a writer that can also write wrong safetensors files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

RawFile = Callable[..., bytes]


@pytest.fixture(scope="session")
def raw_file() -> RawFile:
    """Returns f(header, data, length): a file with this header (an object or bytes), announced as `length`."""

    def build(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + data

    return build


@pytest.fixture(scope="session")
def small_file(raw_file: RawFile) -> bytes:
    """A valid file: w[2,3] bf16, an empty tensor, a scalar, metadata, and an odd header length."""
    header = {
        "__metadata__": {"format": "pt"},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
        "w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "empty": {"dtype": "I64", "shape": [0, 3], "data_offsets": [12, 12]},
    }
    text = json.dumps(header).encode()
    return raw_file(text + b" " * (len(text) % 2 + 1), bytes(range(16)))
