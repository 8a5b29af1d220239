"""Quantizing streams: a model is never whole in memory as numbers, neither while it loads nor while it is written.

A process of its own says how much anonymous memory it held at most. File pages do not count, the system takes them
back whenever it likes; the packed weights, the KV cache and every array are anonymous.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import tensor_shapes, tiny_config, write_model_folder

pytestmark = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has memory of its own")
CONFIG = tiny_config(
    "qwen2",
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=8,
    torch_dtype="bfloat16",
)
MIB = 1 << 20
# Activations and scratch of a program, chunks of rows on their way, what the allocator keeps of those.
RUNTIME_BYTES = 24 * MIB

SAMPLER = """
import json, sys, threading
from pathlib import Path

def anonymous():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

class Peak(threading.Thread):
    def __enter__(self):
        self.least = self.most = anonymous()
        self.ended = threading.Event()
        self.start()
        return self
    def look(self, *ignored):
        self.most = max(self.most, anonymous())
    def run(self):
        while not self.ended.wait(0.001):
            self.look()
    def __exit__(self, *ignored):
        self.look()
        self.ended.set()
        self.join()
        self.grown = self.most - self.least
"""
LOAD = """
from dashinfer_lite import SamplingParams
from dashinfer_lite.llm import LLM

def load(path, look=None):
    options = {"quant": "a16w4-g128", "kv_memory": "64MiB", "max_context": 256, "threads": 2}
    with LLM(path, **options, progress=look) as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))
        stats = llm.stats()
        return {"weights": stats["weight_bytes"], "kv": stats["kv_bytes"]}

load(sys.argv[1])
with Peak() as peak:
    figures = load(sys.argv[2], peak.look)
print(json.dumps(figures | {"grown": peak.grown}))
"""
SAVE = """
from dashinfer_lite.cli.main import main

quantize = ["quantize", "--quant", "a16w4-g128"]
assert main([*quantize, sys.argv[1], sys.argv[3] + "/small"]) == 0
with Peak() as peak:
    assert main([*quantize, sys.argv[2], sys.argv[3] + "/large"]) == 0
print(json.dumps({"grown": peak.grown}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, which brings in everything that is imported, and one of 95 MB whose layers are alike."""
    path = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    made: dict[tuple[int, ...], np.ndarray] = {}
    for shape in tensor_shapes(CONFIG).values():
        if shape not in made:
            made[shape] = rng.random(shape, np.float32) * np.float32(0.06) - np.float32(0.03)
    tensors = {name: made[shape] for name, shape in tensor_shapes(CONFIG).items()}
    small = write_model_folder(path / "small", tiny_config("qwen2", torch_dtype="bfloat16", hidden_size=64))
    return small, write_model_folder(path / "large", CONFIG, tensors)


def figures(code: str, *paths: Path) -> dict[str, Any]:
    """What a process prints in its last line."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SAMPLER + code, *map(str, paths)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def largest_tensor() -> int:
    return 2 * max(int(np.prod(shape)) for shape in tensor_shapes(CONFIG).values())


def test_quantizing_while_loading(folders: tuple[Path, Path]) -> None:
    found = figures(LOAD, *folders)
    total = 2 * sum(int(np.prod(shape)) for shape in tensor_shapes(CONFIG).values())
    assert found["weights"] < 0.4 * total
    assert found["grown"] <= 1.15 * (found["weights"] + found["kv"]) + largest_tensor() + RUNTIME_BYTES


def test_quantizing_into_a_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the target nothing stays either."""
    found = figures(SAVE, *folders, tmp_path)
    assert found["grown"] <= largest_tensor() + RUNTIME_BYTES
