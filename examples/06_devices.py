"""Which devices there are, and the same prompt on the CPU and on the NumPy reference.

python examples/06_devices.py [model folder]
"""

from __future__ import annotations

import sys

from dashinfer_lite import LLM, SamplingParams
from dashinfer_lite.devices import devices


def main(folder: str | None = None) -> None:
    """List the devices, then compare two of them token by token."""
    # A distribution announces its device by the entry point "dashinfer_lite.devices"; frozen applications, which lose
    # entry points, call dashinfer_lite.devices.register(name, capsule) instead.
    for device in devices():
        print(f"{device.name:<10} {'usable' if device.usable else 'not usable: ' + device.reason}")

    # The reference is a few hundred lines of NumPy: slow, plain, and what every other device is tested against.
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=0)
    answers = {}
    for name in ("cpu", "reference"):
        with LLM(folder, device=name, dtype="fp32") as llm:
            answers[name] = llm.generate(["Long ago there lived a fox"], params)[0].outputs[0]
            print(f"{name:<10} {answers[name].text!r}")
    same = answers["cpu"].token_ids == answers["reference"].token_ids
    gap = abs((answers["cpu"].cumulative_logprob or 0) - (answers["reference"].cumulative_logprob or 0))
    print(f"{'the same' if same else 'different'} tokens; their log probabilities differ by {gap:.1e} in all")


if __name__ == "__main__":
    main(*sys.argv[1:2])
