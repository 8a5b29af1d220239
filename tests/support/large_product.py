"""A product with its epilogue on a device, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from one_op import Bench, Maker, Span, rounded

from dashinfer_lite.devices.reference_ops import activation

GATED = 16
UNIT = {"f32": 2.0**-24, "bf16": 2.0**-8}


def product(
    device: Any, count: int, n: int, k: int, x_type: str, w_type: str, *, act: int = 0, out: str = "f32",
    bias: bool = False, residual: str = "", beside: tuple[int, int] = (0, 0),
) -> float:  # fmt: skip
    """A product of `count` rows; the error as a share of what rounding may do.

    `residual` "in place" is the output. With `beside` the activations are columns of wider ones, from that column on
    and with so many after them.
    """
    rng = np.random.default_rng(n + k)
    maker = Maker(device.info, tokens=count + 5)

    def slot(cols: int, dtype: str) -> int:
        before, after = beside
        return (
            maker.view(maker.slot(before + cols + after, dtype), before, cols)
            if any(beside)
            else maker.slot(cols, dtype)
        )

    x, w = slot(k, x_type), maker.matrix(n, k, w_type)
    cols = n // 2 if act >= GATED else n
    y = slot(cols, out)
    r = {"": -1, "in place": y}[residual] if residual != "beside" else slot(cols, "f32")
    b = maker.vector(n) if bias else -1
    maker.op("linear", (x, r), (y,), (w, b), act=act)
    bench = Bench(device, maker)
    values = [rounded(rng.standard_normal(shape), t) for shape, t in (((count, k), x_type), ((n, k), w_type))]
    added = rng.standard_normal((count, cols)).astype(np.float32) if residual else np.zeros((count, cols), np.float32)
    biases = rng.standard_normal(n).astype(np.float32) if bias else np.zeros(n, np.float32)
    bench.matrix(w, values[1])
    if bias:
        bench.vector(b, biases)
    bench.put(x, values[0])
    bench.poison(y, count + 5)
    if residual:
        bench.put(r, added)
    bench.run(Span(count))
    got = bench.get(y, count)[:, :cols]
    bench.close()
    u, v = (each.astype(np.float64) for each in values)
    total, sizes = u @ v.T + biases, np.abs(u) @ np.abs(v).T + np.abs(biases)
    if act >= GATED:
        total, sizes = (each.reshape(count, -1, 2, 16) for each in (total, sizes))
        total = activation(total[:, :, 0], act - GATED) * total[:, :, 1]
        sizes = sizes[:, :, 0] * sizes[:, :, 1]
        total, sizes = (each.reshape(count, cols) for each in (total, sizes))
    else:
        total = activation(total, act)
    expected = total + added
    bound = (k / 16 + 16) * UNIT["f32"] * (sizes + np.abs(added)) + UNIT[out] * np.abs(expected)
    return float((np.abs(got - expected) / bound).max())


TYPES = [("bf16", "bf16", "f32"), ("bf16", "bf16", "bf16"), ("f32", "f32", "f32"), ("f32", "f16", "f32")]
PLAIN: dict[str, Any] = {}
EPILOGUES = [
    PLAIN,
    {"residual": "beside"},
    {"residual": "in place"},
    {"bias": True},
    {"act": 2, "bias": True, "residual": "beside"},
    {"act": GATED + 1},
]
