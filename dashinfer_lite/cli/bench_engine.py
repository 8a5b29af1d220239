"""An engine without a tokenizer, for token ids alone: from a model folder, or from a shape with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.bench_model import RandomWeights, shape_config, tensor_shapes
from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import RequestError
from dashinfer_lite.graph.build import build
from dashinfer_lite.loading import BLOCK_TOKENS, dtype_for, kv_dtype_for, limits_for
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.loader import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from dashinfer_lite.devices import DeviceInfo, Executable
    from dashinfer_lite.graph.program import DType, Program
    from dashinfer_lite.weights.reader import WeightReader


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: its definition and configuration, its weights and their stored type."""

    name: str
    forward: Callable[..., object]
    config: Any
    weights: WeightReader
    stored: str


@dataclass(frozen=True, slots=True)
class OpenEngine:
    """A loaded engine that nobody drives yet, and what it consists of."""

    engine: Engine
    executable: Executable
    program: Program
    info: DeviceInfo
    dtype: DType


def random_source(shape: str) -> Source:
    """A shape with random weights."""
    config = shape_config(shape)
    model = find_model(config["architectures"][0])
    return Source(
        shape, model.forward, model.config.from_dict(config, where=shape), RandomWeights(tensor_shapes(config)), "bf16"
    )


def folder_source(path: Path) -> Source:
    """A model folder; ModelError where it cannot be used."""
    folder = ModelFolder(path)
    model = find_model(folder.architecture)
    config = model.config.from_folder(folder)
    weights = folder.open_weights()
    return Source(path.resolve().name, model.forward, config, weights, folder.stored_dtype(weights))


def open_engine(
    source: Source,
    stack: ExitStack,
    *,
    dtype: str = "auto",
    kv_cache: str = "auto",
    threads: int | None = None,
    sequences: int,
    context: int,
    progress: Callable[[int, int], None] | None = None,
) -> OpenEngine:
    """Build, load and open; `stack` closes everything. There is room for so many sequences of so many tokens each.

    RequestError where the model's context is shorter than that.
    """
    stack.callback(source.weights.close)
    most = source.config.max_position_embeddings
    if context > most:
        raise RequestError(f"{source.name} has a context of {most} tokens, these workloads need {context}; use --only")
    weight_dtype = dtype_for(dtype, source.stored)
    device = open_device("cpu", threads=threads)
    stack.callback(device.close)
    program = build(
        source.forward,
        source.config,
        device.info,
        dtype=weight_dtype,
        kv_dtype=kv_dtype_for(kv_cache, weight_dtype),
        limits=limits_for(None),
        blocks=sequences * -(-context // BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
    )
    executable = device.create(program)
    stack.callback(executable.close)
    load_weights(program, source.weights, executable, progress=progress, threads=device.info.threads)
    engine = Engine(executable, program, max_context=context)
    stack.callback(engine.stop)
    return OpenEngine(engine, executable, program, device.info, weight_dtype)
