"""Older processors, emulated: no instruction of a newer tier leaks into what they run, and their answers are the same.

An illegal instruction would end the emulated process. Public face and all: the demo model loads and answers.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from typing import Any

import pytest

from dashinfer_lite import LLM, SamplingParams

PROMPT = "The fox"
TOKENS = 5
ENDLESS_S = 500  # only a hang takes so long

ANSWER = """
import json, sys
from dashinfer_lite import LLM, SamplingParams
from dashinfer_lite.devices import open_device
from dashinfer_lite.errors import DeviceError

device = open_device("cpu", threads=1)
picked = device.info.tier
device.close()
refused = []
for tier in ("amx", "avx512", "avx2"):
    try:
        open_device("cpu", threads=1, isa=tier).close()
    except DeviceError as error:
        refused.append(str(error))
with LLM(threads=1) as llm:
    sampling = SamplingParams(temperature=0, max_tokens=int(sys.argv[2]), ignore_eos=True)
    tokens = llm.generate(sys.argv[1], sampling)[0].outputs[0].token_ids
print(json.dumps({"picked": picked, "refused": refused, "tokens": list(tokens)}))
"""


def emulated(cpu: str) -> dict[str, Any]:
    """What the script above prints on such a processor; skips without an emulator."""
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("no qemu-x86_64 to run older processors with")
    if platform.machine() != "x86_64":
        pytest.skip("the package is built for another architecture")
    command = [emulator, "-cpu", cpu, sys.executable, "-P", "-c", ANSWER, PROMPT, str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENDLESS_S)
    assert done.returncode == 0, f"on a {cpu} the process ended with {done.returncode}\n{done.stderr[-3000:]}"
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(("cpu", "tier", "refused"), [("Haswell", "avx2", 2), ("Westmere", "scalar", 3)])
def test_older_processors(cpu: str, tier: str, refused: int) -> None:
    """The tier is picked by what the processor has; better ones are refused with what is missing."""
    got = emulated(cpu)
    assert got["picked"] == tier
    assert len(got["refused"]) == refused
    assert all("needs processor features that this machine lacks" in reason for reason in got["refused"])
    with LLM(threads=1, isa=tier) as llm:
        sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        assert got["tokens"] == list(llm.generate(PROMPT, sampling)[0].outputs[0].token_ids)
