"""Mixtures of experts on the reference device: which experts a token chooses, and their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dashinfer_lite.devices.quant_reference import fma

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int32]

# x[rows,K] and an expert → y[rows,N]; the rows are numbers of rows of the input.
Product = Callable[["npt.NDArray[Any]", int], "Floats"]


def route(logits: Floats, chosen: int, renormalize: bool, scale: float) -> Floats:
    """[T,2k]: the experts with the k largest of logits[T,E] in ascending order (int32 bits), then their weights."""
    keys = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    ids = np.sort(np.argsort(-keys, axis=1, kind="stable")[:, :chosen], axis=1).astype(np.int32)
    with np.errstate(invalid="ignore"):
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights = np.take_along_axis(e, ids, axis=1) / e.sum(axis=1, keepdims=True, dtype=np.float32)
        if renormalize:
            weights = weights / weights.sum(axis=1, keepdims=True, dtype=np.float32)
    return np.concatenate([ids.view(np.float32), weights * np.float32(scale)], axis=1)


def experts_of(routing: Floats, chosen: int, experts: int) -> tuple[Ints, Floats]:
    """(experts[T,k], weights[T,k]) of what `route` gave."""
    ids = np.ascontiguousarray(routing[:, :chosen]).view(np.int32)
    return np.clip(ids, 0, experts - 1), routing[:, chosen : 2 * chosen]


def by_expert(ids: Ints, product: Product, n: int) -> Floats:
    """y[T·k,N]: each row's product with the matrix of its expert."""
    expert_of = ids.reshape(-1)
    y = np.zeros((len(expert_of), n), np.float32)
    for expert in np.unique(expert_of):
        rows = np.flatnonzero(expert_of == expert)
        y[rows] = product(rows, int(expert))
    return y


def weighted_sum(y: Floats, weights: Floats, residual: Floats | None) -> Floats:
    """residual + Σ_j weights[T,j] · y[t·k + j], one fma for each j in ascending order."""
    tokens, chosen = weights.shape
    parts = y.reshape(tokens, chosen, -1)
    total = np.zeros_like(parts[:, 0]) if residual is None else residual
    for j in range(chosen):
        total = fma(np.broadcast_to(weights[:, j : j + 1], total.shape), parts[:, j], total)
    return total
