"""From a model definition to the program of one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.lower import lower
from dashinfer_lite.graph.passes import run_passes, select_passes
from dashinfer_lite.graph.plan import KV_BITS, Layout
from dashinfer_lite.graph.quant import QuantPolicy, annotate

if TYPE_CHECKING:
    from dashinfer_lite.devices.base import DeviceInfo
    from dashinfer_lite.graph.program import DType, Limits, Program


def build(
    model_fn: Callable[[Graph, Any], object],
    config: Any,
    info: DeviceInfo,
    *,
    dtype: DType,
    kv_dtype: DType,
    limits: Limits,
    blocks: int,
    block_tokens: int = 32,
    passes: Iterable[str] | None = None,
    quant: QuantPolicy | None = None,
    host_blocks: int = 0,
) -> Program:
    """Records `model_fn(graph, config)`, runs the passes and lowers the result for the device.

    `dtype` is the type of the matrices that `quant` does not quantize, `kv_dtype` (a key of KV_BITS) that of the cache
    of `blocks` blocks of `block_tokens` tokens, with `host_blocks` more in host memory. `passes` names those to run;
    None: those that DASHINFER_PASSES says, normally all.
    """
    if kv_dtype not in KV_BITS:
        raise ValueError(f"the KV cache cannot be {kv_dtype!r}; it is one of {', '.join(KV_BITS)}")
    graph = Graph(dtype)
    model_fn(graph, config)
    trace = run_passes(annotate(graph.trace(), quant), select_passes(passes))
    layout = Layout(info.col_align, info.head_align)
    return lower(
        trace, layout, dtype=dtype, kv_dtype=kv_dtype, limits=limits, blocks=blocks, block_tokens=block_tokens,
        host_blocks=host_blocks,
    )  # fmt: skip
