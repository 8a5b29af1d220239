"""The self-test against the CPU, and one product measured on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashinfer_lite.graph.program import Instr, KvSpec, Limits, Part, Program, Slot, WeightSpec

if TYPE_CHECKING:
    from dashinfer_lite.devices import Device

TOKENS = 16
SIDE = 4096
REPEATS = 20


def self_test(device: str = "cuda", tokens: int = TOKENS) -> str:
    """Writes with the embedded demo model in fp32 on both devices; "" or where they differ."""
    from dashinfer_lite import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    texts = []
    for name in ("cpu", device):
        with LLM(device=name, dtype="fp32", kv_memory="16MiB", max_batch=2) as llm:
            texts.append(llm.generate("Once upon a time", params)[0].outputs[0].token_ids)
    pairs = enumerate(zip(*texts, strict=True))
    return next(
        (f"token {at}: the CPU draws {cpu}, {device} draws {other}" for at, (cpu, other) in pairs if cpu != other), ""
    )


class Product:
    """x[T,K] · w[N,K]ᵀ in bf16 on a device, timed over several steps; the fastest counts."""

    def __init__(self, device: Device, rows: int, *, n: int = SIDE, k: int = SIDE, repeats: int = REPEATS) -> None:
        import numpy as np

        from dashinfer_lite.devices.step import Step

        self.rows, self.n, self.k = rows, n, k
        executable: Any = device.create(_program(rows, n, k))
        step = Step(_limits(rows), 1)
        step.T = rows
        step.B = 1
        step.q_offset[1] = step.kv_len[0] = rows
        times = []
        for _ in range(repeats):
            executable.wait(executable.submit(step))
            times.append(executable.stats()["last_step_ns"])
        self.seconds = float(np.min(times)) * 1e-9
        executable.close()

    def describe(self) -> str:
        """One line with the share of memory and arithmetic that the product had."""
        read, done = 2 * self.n * self.k / self.seconds, 2 * self.rows * self.n * self.k / self.seconds
        speed = f"{self.seconds * 1e6:.1f} µs, {read / 1e9:.0f} GB/s, {done / 1e12:.2f} TFLOP/s"
        return f"[{self.rows},{self.k}] · [{self.n},{self.k}]ᵀ bf16: {speed}"


def _limits(rows: int) -> Limits:
    return Limits(max_tokens=rows, tail_rows=1, max_seqs=1, max_logprobs=0)


def _program(rows: int, n: int, k: int) -> Program:
    import numpy as np

    padded = -(-rows // 32) * 32
    slots = (Slot("bf16", "T", k), Slot("bf16", "T", n, offset=padded * k * 2))
    nowhere = np.full(n, -1, np.int32)
    weight = WeightSpec("linear", "w", "bf16", n, k, k, k, (Part("w"),), nowhere, np.zeros_like(nowhere))
    product = Instr("linear", (0,), (1,), (0, -1), (0,))
    kv = KvSpec(0, 1, 32, "bf16", 32, 1)
    return Program(slots, (product,), (), (weight,), kv, _limits(rows), padded * (k + n) * 2, 1, k)
