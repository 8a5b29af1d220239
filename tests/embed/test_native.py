"""The CPU device as a guest: it pays for what it holds, gives it back, and never sits on the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from model_folders import tiny_config, write_model_folder

from dashinfer_lite import LLM, SamplingParams, _native

# About 300 MB of fp32 weights, enough to tell them from an interpreter's own memory.
SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 5, "vocab_size": 8192}

MEMORY = """
import sys
from dashinfer_lite import LLM, SamplingParams, _native
from dashinfer_lite.text import load_tokenizer
import numpy, dashinfer_lite.loading, dashinfer_lite.devices.native, dashinfer_lite.engine.engine
load_tokenizer(GOLDEN + '/qwen2_5')
base = _native.memory()[0]
llm = LLM(sys.argv[1], kv_memory='256MiB', max_context=4096)
llm.generate([list(range(3, 600))], SamplingParams(max_tokens=8, ignore_eos=True))
stats = llm.stats()
peak = _native.memory()[1] - base
paid = stats['weight_bytes'] + stats['kv_bytes']
assert stats['weight_bytes'] > 150e6 and stats['kv_bytes'] > 0, stats
assert peak <= 1.15 * paid, (peak, stats)
llm.close()
left = _native.memory()[0] - base
assert left <= 0.1 * paid, (left, stats)
print('well')
"""


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model large enough to weigh."""
    path = tmp_path_factory.mktemp("weighed")
    config = tiny_config("qwen2", **SIZES, num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True)
    write_model_folder(path, config)
    return path


def test_memory(run_python: Callable[..., CompletedProcess[str]], big_folder: Path) -> None:
    """Above a process with a tokenizer: at most 1.15 × (packed weights + KV touched), and nothing after close()."""
    done = run_python(MEMORY, str(big_folder))
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr


def test_no_native_call_keeps_the_gil(big_folder: Path) -> None:
    """Another thread counts on while the model is loaded and while one call computes a long prompt."""
    counter = Counter()
    with counter:
        before = counter.value
        llm = LLM(big_folder, kv_memory="256MiB", max_context=4096)
        assert counter.value > before + 10
    with llm:
        prompt = np.arange(2048) % 8000
        before_steps = llm.engine.metrics()["steps"]
        with counter:
            before = counter.value
            llm.generate([prompt.tolist()], SamplingParams(max_tokens=1, ignore_eos=True))
            counted = counter.value - before
        steps = llm.engine.metrics()["steps"] - before_steps
        assert counted > 10 * steps, (counted, steps)
    assert _native.ABI_VERSION == 1


class Counter:
    """A thread that counts whenever it gets the GIL."""

    def __init__(self) -> None:
        self.value = 0
        self._going = threading.Event()

    def __enter__(self) -> Counter:
        self._going.set()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going.clear()
        self._thread.join()

    def _count(self) -> None:
        pause = threading.Event()
        while self._going.is_set():
            self.value += 1
            pause.wait(0.0005)
