"""One run on a machine with a GPU: builds, checks and measures within ten minutes, and writes what it found as JSON.

    python tests/cuda/gpu/run.py [OUT.json] [--architectures "sm_90a"] [--skip build,suite,sanitizer,bench] [--emulated]

Both distributions go into a folder of this run, with kernels for the GPU at hand alone; what is installed stays as it
is. Each part has a limit of its own, and one that fails does not stop the next. Figures stand beside what PyTorch does
in the same run where it is installed. Without OUT.json they go to tests/bench/results. `--emulated` goes through all of
it on the emulator beside the dashinfer-lite that is installed, with sizes that it can do: the run is what that tests,
its times mean nothing.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[3]
SUPPORT = HOUSE / "tests" / "support"
HERE = Path(__file__).resolve().parent
# Seconds; together ten minutes.
LIMITS = {"build": 150, "device": 40, "suite": 120, "memcheck": 60, "racecheck": 60, "bench": 170}
PARTS = ("build", "device", "suite", "sanitizer", "bench")
NATIVE = {"90": "sm_90a"}  # compute capabilities whose kernels have features of that chip alone


def main() -> int:
    """Runs the parts; 0 where none failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--architectures", default="")
    parser.add_argument("--skip", default="")
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args()
    name = f"cuda-{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    out = options.out or HOUSE / "tests" / "bench" / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    skipped = set(options.skip.split(","))
    with tempfile.TemporaryDirectory(prefix="dashinfer-gpu-") as folder:
        run = Run(Path(folder), options.architectures, options.emulated)
        if "build" not in skipped:
            run.use_site()
        if options.emulated:
            run.use_emulator()
        result = run.all(skipped, out)
    return int(any("failed" in part for part in result["parts"].values()))


@dataclass
class Run:
    """The parts of a run, in a folder of its own."""

    folder: Path
    architectures: str = ""
    emulated: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def use_site(self) -> None:
        """From now on what this run builds comes first."""
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(self.site), os.environ.get("PYTHONPATH"))))

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def all(self, skipped: set[str], out: Path) -> dict[str, Any]:
        """Every part after the other; what is known is written after each."""
        result: dict[str, Any] = {
            "machine": platform.node(),
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "commit": self.commit(),
            "emulated": self.emulated,
            "parts": {},
        }
        for name in PARTS:
            if name in skipped:
                continue
            begun = time.monotonic()
            try:
                found = getattr(self, name)()
            except Exception as error:  # the next part may still tell something
                found = {"failed": f"{type(error).__name__}: {error}"[-4000:]}
            result["parts"][name] = {"seconds": round(time.monotonic() - begun, 1), **found}
            out.write_text(json.dumps(result, indent=1) + "\n")
            print(name, json.dumps(result["parts"][name])[:400], flush=True)
        return result

    # ---- the parts ----

    def build(self) -> dict[str, Any]:
        """Both distributions from this checkout; for the emulator dashinfer-cuda alone, without its kernels."""
        install = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
        install += ["--target", str(self.site), str(HOUSE)]
        if not self.emulated:
            self.run("build", *install)
        architectures = self.architectures or self.native_architecture()
        chosen = {"DASHINFER_CUDA_ARCHS": architectures} if architectures else {}
        if self.emulated:
            chosen = {"DASHINFER_CUDA_AOT": "off"}
        self.run("build", *install, more={"DASHINFER_DIST": "cuda", **chosen})
        manifest = self.site / "dashinfer_cuda" / "cubin" / "manifest.json"
        return {"kernels": json.loads(manifest.read_text()) if manifest.exists() else "compiled on first use"}

    def device(self) -> dict[str, Any]:
        """What `python -m dashinfer_cuda` says."""
        quick = ["--quick"] if self.emulated else []
        return {"output": self.run("device", sys.executable, "-P", "-m", "dashinfer_cuda", *quick).splitlines()}

    def suite(self) -> dict[str, Any]:
        """The tests of this folder."""
        # On the emulator one model stands for all.
        chosen = ["-p", "cuda_plugin", "-k", "qwen2_5 or many_rows"] if self.emulated else []
        more = {"PYTHONPATH": os.pathsep.join((str(SUPPORT), self.environment.get("PYTHONPATH", "")))}
        output = self.run("suite", sys.executable, "-P", "-m", "pytest", "-q", *chosen, str(HERE), more=more)
        return {"output": output.splitlines()[-4:]}

    def sanitizer(self) -> dict[str, Any]:
        """compute-sanitizer's memcheck and racecheck over a short text of the demo model, and of its quantized form."""
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            return {"left_out": "compute-sanitizer is not installed"}
        text, tokens = ("Once", 2) if self.emulated else ("Once upon a time there was", 6)
        script = self.folder / "checked.py"
        script.write_text(
            "from dashinfer_lite import LLM, SamplingParams\n"
            "for options in ({}, {'quant': 'a16w8', 'kv_cache': 'int8'}, {'quant': 'a8w8', 'kv_cache': 'uint4'}):\n"
            "    with LLM(device='cuda', kv_memory='16MiB', max_batch=4, **options) as llm:\n"
            f"        llm.generate({text!r}, SamplingParams(max_tokens={tokens}, seed=1, top_k=20))\n"
        )
        checked = {}
        for check in ("memcheck", "racecheck"):
            command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-P", str(script)]
            checked[check] = self.run(check, *command).splitlines()[-1:]
        return checked

    def bench(self) -> dict[str, Any]:
        """The figures of bench.py."""
        tiny = ["--tiny"] if self.emulated else []
        found: dict[str, Any] = json.loads(self.run("bench", sys.executable, "-P", str(HERE / "bench.py"), *tiny))
        return found

    # ---- what they use ----

    def run(self, name: str, *command: str, more: dict[str, str] | None = None) -> str:
        """A command's output; RuntimeError with its end where it fails."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | self.environment | (more or {}),
            capture_output=True,
            text=True,
            timeout=LIMITS[name] * (10 if self.emulated else 1),
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return done.stdout

    def native_architecture(self) -> str:
        """The architecture of the GPU at hand; "" where nobody says."""
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return ""
        command = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        number = said[0].replace(".", "") if said else ""
        return NATIVE.get(number, f"sm_{number}") if number.isdigit() else ""

    def use_emulator(self) -> None:
        """The stand-ins for driver and cuBLASLt, and the kernels' images for it, in place of a GPU."""
        sys.path.append(str(SUPPORT))
        from cuda_emulator import emulator

        made = emulator()
        for name, path in (("DRIVER", made.driver), ("KERNELS", made.kernels), ("CUBLASLT", made.driver)):
            self.environment[f"DASHINFER_CUDA_{name}"] = str(path)

    def commit(self) -> str:
        """Of the checkout, where git knows it."""
        command = ["git", "-C", str(HOUSE), "rev-parse", "--short", "HEAD"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            return ""


if __name__ == "__main__":
    sys.exit(main())
