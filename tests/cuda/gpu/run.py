"""One run on a machine with a GPU: builds, checks and measures within ten minutes, and writes what it found as JSON.

    python tests/cuda/gpu/run.py OUT.json [--architectures "sm_90a"] [--skip build,suite,sanitizer,bench]

Each part has a limit of its own, and one that fails does not stop the next. Figures stand beside what PyTorch does in
the same run where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[3]
GOLDEN = HOUSE / "tests" / "golden" / "qwen2_5"
SHAPES = ((1, 4096, 4096), (1, 28672, 4096), (16, 4096, 4096), (64, 4096, 4096), (512, 4096, 4096), (4096, 4096, 4096))
LIMITS = {"build": 240, "device": 60, "suite": 180, "sanitizer": 120, "bench": 120}


def main() -> int:
    """Runs the parts; 0 where none failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--architectures", default="")
    parser.add_argument("--skip", default="")
    options = parser.parse_args()
    skipped = set(options.skip.split(","))
    result: dict[str, Any] = {"machine": platform.node(), "date": time.strftime("%Y-%m-%d %H:%M:%S"), "parts": {}}
    parts = {
        "build": lambda: build(options.architectures),
        "device": device,
        "suite": suite,
        "sanitizer": sanitizer,
        "bench": bench,
    }
    for name, part in parts.items():
        if name in skipped:
            continue
        begun = time.monotonic()
        try:
            found = part()
        except Exception as error:  # the next part may still tell something
            found = {"failed": f"{type(error).__name__}: {error}"[-4000:]}
        result["parts"][name] = {"seconds": round(time.monotonic() - begun, 1), **found}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result["parts"][name])[:400], flush=True)
    return int(any("failed" in part for part in result["parts"].values()))


def run(name: str, *command: str, environment: dict[str, str] | None = None) -> str:
    """A command's output; RuntimeError with its end where it fails."""
    done = subprocess.run(
        command,
        cwd=HOUSE,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=LIMITS[name],
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def build(architectures: str) -> dict[str, Any]:
    """Both distributions from this checkout."""
    install = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--force-reinstall",
        ".",
    )
    run("build", *install)
    chosen = {"DASHINFER_CUDA_ARCHS": architectures} if architectures else {}
    run("build", *install, environment={"DASHINFER_DIST": "cuda", **chosen})
    return {}


def device() -> dict[str, Any]:
    """What `python -m dashinfer_cuda` says."""
    return {"output": run("device", sys.executable, "-m", "dashinfer_cuda").splitlines()}


def suite() -> dict[str, Any]:
    """The tests of this folder."""
    lines = run("suite", sys.executable, "-m", "pytest", "-q", str(Path(__file__).parent)).splitlines()
    return {"output": lines[-4:]}


def sanitizer() -> dict[str, Any]:
    """compute-sanitizer's memcheck and racecheck over a short text of a golden model."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"left_out": "compute-sanitizer is not installed"}
    program = (
        "from dashinfer_lite import LLM, SamplingParams\n"
        "for options in ({}, {'quant': 'a16w8', 'kv_cache': 'int8'}):\n"
        f"    with LLM({str(GOLDEN)!r}, 'cuda', kv_memory='16MiB', max_batch=4, **options) as llm:\n"
        "        llm.submit(list(range(3, 60)), SamplingParams(max_tokens=6, seed=1)).result()\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(program)
        script.flush()
        checked = {}
        for check in ("memcheck", "racecheck"):
            output = run("sanitizer", tool, "--tool", check, "--error-exitcode", "9", sys.executable, script.name)
            checked[check] = output.splitlines()[-1]
    return checked


def bench() -> dict[str, Any]:
    """Products beside torch.matmul, and a decode of the demo model."""
    from dashinfer_cuda._check import Product
    from dashinfer_lite.devices import open_device

    opened = open_device("cuda")
    products = []
    for rows, n, k in SHAPES:
        seconds = Product(opened, rows, n=n, k=k).seconds
        row = {
            "T": rows,
            "N": n,
            "K": k,
            "us": seconds * 1e6,
            "GB/s": 2 * n * k / seconds / 1e9,
            "TFLOP/s": 2 * rows * n * k / seconds / 1e12,
        }
        products.append(row | torch_product(rows, n, k))
    opened.close()
    return {"products": products, "decode": decode()}


def torch_product(rows: int, n: int, k: int) -> dict[str, float]:
    """The same by torch.matmul; empty where PyTorch or its GPU is missing."""
    try:
        import torch
    except ModuleNotFoundError:
        return {}
    if not torch.cuda.is_available():
        return {}
    x, w = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for shape in ((rows, k), (n, k)))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    times = []
    for _ in range(20):
        events[0].record()
        torch.matmul(x, w.T)
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    return {"torch_us": min(times) * 1e3}


def decode() -> dict[str, Any]:
    """Tokens a second of the demo model, alone and in a batch: what launches cost, for the model itself is nothing."""
    from dashinfer_lite import LLM, SamplingParams

    found = {}
    for batch in (1, 32):
        params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
        with LLM(device="cuda", kv_memory="256MiB", max_batch=batch) as llm:
            llm.generate(["Once upon a time"] * batch, params)
            begun = time.monotonic()
            llm.generate(["Once upon a time"] * batch, params)
            found[f"batch {batch}"] = round(128 * batch / (time.monotonic() - begun), 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
