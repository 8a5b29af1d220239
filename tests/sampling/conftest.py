"""The native sampler, compiled here over plain kernels, and records to feed it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dashinfer_lite.devices.step import RAW_LOGPROB, SAMPLE_DTYPE

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-O2", "-std=c++17", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
LISTS = {
    "history": ("history_len", np.int32),
    "banned_ids": ("n_banned", np.int32),
    "bias_ids": ("n_bias", np.int32),
    "bias_values": (None, np.float32),
    "mask": (None, np.uint32),
}


@dataclass
class Records:
    """di_sample records with the arrays that their addresses point at."""

    array: np.ndarray
    keep: list[np.ndarray] = field(default_factory=list)


def make_records(count: int = 1, **options: Any) -> Records:
    """Builds `count` records; a list option is given as a sequence, `position` and `seed` may be arrays of `count`."""
    records = Records(np.zeros(count, SAMPLE_DTYPE))
    records.array["temperature"] = records.array["top_p"] = records.array["repetition_penalty"] = 1
    records.array["target"] = records.array["slot"] = -1
    for name, value in options.items():
        if name in LISTS:
            length, dtype = LISTS[name]
            values = np.ascontiguousarray(value, dtype)
            records.keep.append(values)
            records.array[name] = values.ctypes.data
            if length:
                records.array[length] = len(values)
        elif name == "report":
            records.array["flags"] = RAW_LOGPROB if value else 0
        else:
            records.array[name] = value
    return records


@dataclass
class Results:
    """Outputs of `count` records, as the step's arrays hold them."""

    token: np.ndarray
    status: np.ndarray
    logprob: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


class NativeSampler:
    """The library's entries; scratch is kept for a vocabulary, as a device keeps it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.scratch_create.restype = ctypes.c_void_p
        for name in ("natural_log", "natural_exp", "power"):
            function = getattr(library, name)
            function.restype = ctypes.c_double
            function.argtypes = [ctypes.c_double] * (2 if name == "power" else 1)
        self._scratch: dict[tuple[int, int], int] = {}

    def sample(self, row: np.ndarray, records: Records, max_top: int = 8) -> Results:
        """Samples every record from `row`, which must come back unchanged."""
        row = np.ascontiguousarray(row, np.float32)
        before, count = row.tobytes(), len(records.array)
        key = len(row), max_top
        if key not in self._scratch:
            self._scratch[key] = self.library.scratch_create(*key)
            assert self._scratch[key]
        out = Results(
            *(np.zeros(count, dtype) for dtype in (np.int32, np.int32, np.float32, np.int32)),
            np.zeros((count, max_top), np.int32),
            np.zeros((count, max_top), np.float32),
        )
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in vars(out).values()]
        self.library.sample_many(
            ctypes.c_void_p(self._scratch[key]),
            ctypes.c_void_p(records.array.ctypes.data),
            count,
            ctypes.c_void_p(row.ctypes.data),
            len(row),
            max_top,
            *pointers,
        )
        assert row.tobytes() == before
        return out

    def close(self) -> None:
        """Frees the scratch."""
        for scratch in self._scratch.values():
            self.library.scratch_free(ctypes.c_void_p(scratch))


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeSampler]:
    """The native sampler, or a skip where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the sampler with")
    library = tmp_path_factory.mktemp("sampler") / "libsampler.so"
    sources = [ROOT / "tests" / "sampling" / "sampler_library.cpp", ROOT / "cpu_kernels" / "runtime" / "sampler.cpp"]
    subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", str(library)], check=True)
    sampler = NativeSampler(ctypes.CDLL(str(library)))
    yield sampler
    sampler.close()


@pytest.fixture
def records() -> Any:
    """The builder of records."""
    return make_records
