"""CUDA products against float64: tails, epilogues, experts. Codes: exactly the bits of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from emulated_kernels import DTYPES, Array, Chip, Kernels, Memory, chip, make, rows, view
from kernel_data import pack_codes, random_codes, stored_rows, values_of
from one_op import stored

from dashinfer_lite.devices.quant_reference import quantize, to_planes
from dashinfer_lite.devices.reference_ops import activation

UNIT = 2.0**-24
GATED = 16


@dataclass
class Finish:
    """What follows a product, and the memory of its output; rows beyond `count` must stay."""

    memory: Memory
    most: int
    count: int
    n: int
    act: int = 0
    out: str = "f32"

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.n)
        self.cols = self.n // 2 if self.act >= GATED else self.n
        self.bias = self.memory.put(rng.standard_normal(self.n).astype(np.float32))
        self.residual = self.memory.put(rng.standard_normal((self.most, self.cols)).astype(np.float32))
        self.y = self.memory.put(stored_rows(self.most, self.cols, self.out))

    @property
    def epilogue(self) -> Any:
        fields = {"out": view(self.y, self.out), "residual": view(self.residual), "bias": self.bias}
        return make("Epilogue", **fields, act=self.act)

    def of(self, total: Array) -> Array:
        """act(total + bias) + residual in the type of `total`."""
        y = total + self.bias
        if self.act >= GATED:
            pairs = y.reshape(len(y), -1, 2, GATED)
            y = (activation(pairs[:, :, 0], self.act - GATED) * pairs[:, :, 1]).reshape(len(y), -1)
        else:
            y = activation(y, self.act)
        return y + self.residual[: len(y)]

    def check(self, total: Array, error: Array) -> None:
        """The output is that of `total`, whose error is at most `error`."""
        expected = self.of(total)
        sizes = np.abs(total) + 5
        spread = error + 8 * UNIT * sizes
        if self.act >= GATED:  # errors of both halves, times the other
            pairs, big = spread.reshape(len(total), -1, 2, GATED), sizes.reshape(len(total), -1, 2, GATED)
            spread = (pairs[:, :, 0] * big[:, :, 1] + pairs[:, :, 1] * big[:, :, 0]).reshape(len(total), -1)
        rounding = {"f32": UNIT, "bf16": 2.0**-8, "f16": 2.0**-10}[self.out]
        got = values_of(self.y, self.out)
        bound = 2 * spread + rounding * np.abs(expected)
        assert (np.abs(got[: self.count] - expected[: self.count]) <= bound[: self.count]).all()
        assert (got[self.count :] == 7).all()

    def check_exact(self, total: Array) -> None:
        """The output is that of `total`, bit by bit where no activation stands between."""
        if self.act:
            self.check(total, np.zeros_like(total))
            return
        np.testing.assert_array_equal(self.y[: self.count], self.of(total)[: self.count])
        assert (self.y[self.count :] == 7).all()


# ---- numbers ---------------------------------------------------------------------------------------------------------

FMA = [("linear_gemv1_{}", 1, 96, 160), ("linear_gemv8_{}", 9, 64, 1056), ("linear_fma", 70, 96, 96)]
MMA = [("linear_skinny_{}", 13, 64, 1056), ("linear_mma64_{}", 70, 96, 128), ("linear_mma128_{}", 515, 160, 64)]
CASES = [(*case, x, w, 60) for case in FMA for x, w in (("f32", "f32"), ("f32", "f16"), ("bf16", "bf16"))]
CASES += [(*case, t, t, 80) for case in MMA for t in ("bf16", "f16")]
CASES += [(f"{name.format('f16')}_f32", *size, "f32", "f16", arch) for name, *size in MMA[:2] for arch in (70, 75)]


@pytest.mark.parametrize("act", [0, 2, GATED + 1])
@pytest.mark.parametrize(("kernel", "count", "n", "k", "x_type", "w_type", "arch"), CASES)
def test_linear(
    kernels: Kernels, kernel: str, count: int, n: int, k: int, x_type: str, w_type: str, arch: int, act: int
) -> None:
    if act and count > 500:
        pytest.skip("the epilogue is the same for all tiles")
    out = "f32" if act else w_type
    check_linear(kernels, chip(arch), kernel.format(w_type), (count, n, k), x_type, w_type, act, out)


def check_linear(
    kernels: Kernels, where: Chip, kernel: str, size: tuple[int, int, int], x_type: str, w_type: str, act: int, out: str
) -> None:
    """A product of `count` rows of a bucket that is a little larger."""
    count, n, k = size
    rng, memory = np.random.default_rng(n + k + act), Memory()
    most = count if count == 1 else count + 3
    x = memory.put(stored(rng.standard_normal((most, k)), x_type))
    w = memory.put(stored(rng.standard_normal((n, k)), w_type))
    finish = Finish(memory, most, count, n, act, out)
    fields = {"x": view(x, x_type), "w": w, "w_stride": k, "w_dtype": DTYPES[w_type], "N": n, "K": k}
    actual = memory.put(np.array([count], np.int32))
    args = make("LinearArgs", e=finish.epilogue, **fields, rows=rows(most, actual))
    assert kernels.launch("linear", args, where) == kernel
    u, v = values_of(x, x_type).astype(np.float64), values_of(w, w_type).astype(np.float64)
    finish.check(u @ v.T, (k / 16 + 8) * UNIT * (np.abs(u) @ np.abs(v).T))


# ---- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(
    ("count", "n", "k", "group", "scales", "act"),
    [
        (1, 96, 320, 320, "f32", 0),
        (5, 96, 130, 130, "bf16", GATED + 1),
        (9, 64, 700, 64, "bf16", 0),
        (13, 64, 200, 100, "f16", GATED + 1),
        (70, 96, 256, 128, "f32", 0),
        (40, 96, 600, 600, "f16", GATED + 3),
        (33, 64, 130, 32, "bf16", 1),
    ],
)
def test_linear_codes(
    kernels: Kernels, bits: int, planes: int, count: int, n: int, k: int, group: int, scales: str, act: int
) -> None:
    """Few rows and many, one group and dozens, short last groups; exactly the integers of the reference."""
    rng, memory = np.random.default_rng(count + k), Memory()
    weight = random_codes(rng, n, k, bits, group, scales)
    most = count + 2
    x = quantize(rng.standard_normal((most, k)).astype(np.float32), group, planes)
    finish = Finish(memory, most, count, n, act)
    args = codes_args(memory, finish, weight, x, planes, rows(most, memory.put(np.array([count], np.int32))))
    kernel = kernels.launch("linear_codes", args, chip(70))
    assert kernel == f"linear_w{bits}_{'few' if most <= 16 else 'many'}{planes}"
    finish.check_exact(weight.product(to_planes(x.integers, group, planes), x.scales, x.sums))


def codes_args(memory: Memory, finish: Finish, weight: Any, x: Any, planes: int, count: Any, **experts: Any) -> Any:
    """LinearCodesArgs of quantized activations."""
    packed = memory.put(to_planes(x.integers, weight.spec.quant_group, planes).astype(np.int8))
    grid = memory.put(np.concatenate([x.scales, x.sums.view(np.float32)], axis=1))
    fields = {"planes": packed, "planes_stride": packed.shape[1], "grid": grid, "grid_stride": grid.shape[1]}
    epilogue, codes = finish.epilogue, pack_codes(memory, weight)
    return make("LinearCodesArgs", e=epilogue, w=codes, **fields, n_planes=planes, rows=count, **experts)


# ---- experts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (60, 4), (128, 8), (3, 3)])
@pytest.mark.parametrize("renormalize", [False, True])
def test_route(kernels: Kernels, experts: int, chosen: int, renormalize: bool) -> None:
    """The largest logits, of equal ones the lower; a token with a NaN chooses and has NaN weights."""
    rng, memory = np.random.default_rng(experts), Memory()
    logits = np.round(rng.standard_normal((7, experts)) * 2, 1).astype(np.float32)
    logits[3, 1] = np.nan
    logits[4] = 0.5
    out = memory.full((7, 2 * chosen + 4), np.float32, 7)
    fields = {"logits": view(memory.put(logits)), "out": view(out), "experts": experts, "chosen": chosen}
    args = make("RouteArgs", **fields, renormalize=renormalize, scale=1.5, rows=rows(7))
    kernels.launch("route", args)
    keys = np.where(np.isnan(logits), -np.inf, logits)
    ids = np.sort(np.argsort(-keys, axis=1, kind="stable")[:, :chosen], axis=1)
    np.testing.assert_array_equal(out[:, :chosen].view(np.int32), ids)
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    weights = np.take_along_axis(p, ids, 1) / p.sum(1, keepdims=True)
    if renormalize:
        weights = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(out[:, chosen : 2 * chosen], 1.5 * weights, rtol=2e-6)
    assert not out[:, 2 * chosen :].any()


@dataclass
class Routed:
    """Tokens with their experts, sorted on the device where `tile` is not 0."""

    memory: Memory
    tokens: int
    experts: int
    chosen: int
    tile: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.tokens)
        draws = [rng.choice(self.experts, self.chosen, replace=False) for _ in range(self.tokens)]
        self.ids = np.sort(np.array(draws, np.int32), axis=1)
        self.weights = rng.uniform(0, 1, self.ids.shape).astype(np.float32)
        self.routing = self.memory.put(np.concatenate([self.ids.view(np.float32), self.weights], axis=1))

    def fields(self, kernels: Kernels, n: int, share: int) -> Any:
        """The struct Experts for a weight of n rows an expert."""
        total = self.tokens * self.chosen
        lists: dict[str, Any] = {}
        if self.tile:
            most = min(total, self.experts + total // self.tile)
            listed, count = self.memory.full((total,), np.int32, -1), self.memory.full((1,), np.int32, -1)
            lists = {"list": listed, "tiles": self.memory.full((most, 3), np.int32, -1), "n_tiles": count}
            group = {"experts": self.experts, "chosen": self.chosen, "tile_rows": self.tile, "rows": rows(self.tokens)}
            args = make("GroupArgs", routing=self.routing, routing_stride=2 * self.chosen, **group, **lists)
            kernels.launch("expert_group", args)
            assert sorted(listed) == list(range(total)) and 0 < count[0] <= most
            for expert, first, size in lists["tiles"][: count[0]]:
                assert (self.ids.reshape(-1)[listed[first : first + size]] == expert).all() and 0 < size <= self.tile
        fields = {"chosen": self.chosen, "experts": self.experts, "N": n, "share": share}
        return make("Experts", **fields, routing=self.routing, routing_stride=2 * self.chosen, **lists)


@pytest.mark.parametrize("shared_input", [False, True])
@pytest.mark.parametrize(
    ("kernel", "tokens", "tile", "dtype", "arch"),
    [
        ("linear_gemv1_f32", 5, 0, "f32", 80),
        ("linear_skinny_bf16", 3, 0, "bf16", 80),
        ("linear_fma", 40, 64, "f32", 80),
        ("linear_fma", 23, 64, "bf16", 70),
        ("linear_mma64_bf16", 50, 64, "bf16", 80),
    ],
)
def test_expert_linear(
    kernels: Kernels, kernel: str, tokens: int, tile: int, dtype: str, arch: int, shared_input: bool
) -> None:
    rng, memory = np.random.default_rng(tokens), Memory()
    experts, chosen, n, k = 6, 3, 64, 96
    routed = Routed(memory, tokens, experts, chosen, tile)
    x = memory.put(stored(rng.standard_normal((tokens if shared_input else tokens * chosen, k)), dtype))
    w = memory.put(stored(rng.standard_normal((experts * n, k)), dtype))
    finish = Finish(memory, tokens * chosen, tokens * chosen, n, GATED + 1 if shared_input else 0)
    fields = {
        "x": view(x, dtype),
        "w": w,
        "w_stride": k,
        "w_dtype": DTYPES[dtype],
        "N": n,
        "K": k,
        "rows": rows(tokens),
    }
    meets = routed.fields(kernels, n, chosen if shared_input else 1)
    assert (
        kernels.launch("linear", make("LinearArgs", e=finish.epilogue, experts=meets, **fields), chip(arch)) == kernel
    )
    u = np.repeat(values_of(x, dtype), chosen, 0) if shared_input else values_of(x, dtype)
    mine = values_of(w, dtype).reshape(experts, n, k)[routed.ids.reshape(-1)].astype(np.float64)
    total, sizes = (np.einsum("rk,rnk->rn", f(u), f(mine)) for f in (np.asarray, np.abs))
    finish.check(total, (k / 16 + 8) * UNIT * sizes)


@pytest.mark.parametrize(
    ("bits", "planes", "tokens", "tile"), [(4, 2, 5, 0), (8, 1, 3, 0), (4, 2, 30, 32), (8, 1, 40, 64)]
)
def test_expert_linear_codes(kernels: Kernels, bits: int, planes: int, tokens: int, tile: int) -> None:
    rng, memory = np.random.default_rng(tokens), Memory()
    experts, chosen, n, k, group = 5, 2, 32, 200, 64
    routed = Routed(memory, tokens, experts, chosen, tile)
    weight = random_codes(rng, experts * n, k, bits, group, "f32")
    x = quantize(rng.standard_normal((tokens, k)).astype(np.float32), group, planes)
    finish = Finish(memory, tokens * chosen, tokens * chosen, n)
    meets = routed.fields(kernels, n, chosen)
    kernels.launch("linear_codes", codes_args(memory, finish, weight, x, planes, rows(tokens), experts=meets), chip(80))
    whole = weight.product(to_planes(x.integers, group, planes), x.scales, x.sums).reshape(tokens, experts, n)
    finish.check_exact(np.take_along_axis(whole, routed.ids[:, :, None], 1).reshape(-1, n))


@pytest.mark.parametrize("residual", [False, True])
def test_expert_sum(kernels: Kernels, residual: bool) -> None:
    rng, memory = np.random.default_rng(0), Memory()
    routed = Routed(memory, 4, 9, 3, 0)
    y, r = (memory.put(rng.standard_normal((count, 64)).astype(np.float32)) for count in (12, 4))
    out = memory.full((4, 64), np.float32, 7)
    fields = {"y": view(y), "out": view(out), "routing": routed.routing, "routing_stride": 6, "chosen": 3}
    kernels.launch(
        "expert_sum", make("ExpertSumArgs", **fields, **({"residual": view(r)} if residual else {}), rows=rows(4))
    )
    expected = np.einsum("tj,tjn->tn", routed.weights.astype(np.float64), y.reshape(4, 3, 64)) + (r if residual else 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
