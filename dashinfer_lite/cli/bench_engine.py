"""An engine without a tokenizer, for token ids alone: from a model folder, or from a shape with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.bench_model import RandomWeights, shape_config, tensor_shapes
from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.errors import RequestError
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.loading import (
    BLOCK_TOKENS,
    Options,
    dtype_for,
    kv_block_bytes,
    kv_dtype_for,
    kv_room,
    limits_for,
    quant_policy,
)
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
    """Where a model comes from: definition, configuration, weights, their stored type, and what becomes of them."""

    name: str
    forward: Callable[..., object]
    config: Any
    weights: WeightReader
    stored: str
    quant: QuantPolicy


@dataclass(frozen=True, slots=True)
class OpenEngine:
    """A loaded engine that nobody drives yet, and what it consists of."""

    engine: Engine
    executable: Executable
    program: Program
    info: DeviceInfo
    dtype: DType


def random_source(shape: str, options: Options) -> Source:
    """A shape with random weights, quantized as the options say."""
    config = shape_config(shape)
    model = find_model(config["architectures"][0], config)
    weights = RandomWeights(tensor_shapes(config))
    quant = options.quant
    if not isinstance(quant, QuantPolicy):
        quant = QuantPolicy.parse(quant, head=options.head)
    return Source(shape, model.forward, model.config.from_dict(config, where=shape), weights, "bf16", quant)


def folder_source(path: Path, options: Options) -> Source:
    """A model folder; ModelError where it cannot be used."""
    folder = ModelFolder(path)
    model = find_model(folder.architecture, folder.config)
    config = model.config.from_folder(folder)
    weights = folder.open_weights()
    stored, quant = folder.stored_dtype(weights), quant_policy(options, folder, weights)
    return Source(path.resolve().name, model.forward, config, weights, stored, quant)


def open_engine(
    source: Source,
    stack: ExitStack,
    options: Options,
    *,
    sequences: int,
    context: int,
    kv_memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OpenEngine:
    """Build, load and open; `stack` closes everything. There is room for so many sequences of so many tokens each.

    With `kv_memory` bytes there may be room for fewer at a time. RequestError where the model's context is shorter than
    that, CapacityError where the memory does not hold one.
    """
    stack.callback(source.weights.close)
    most = source.config.max_position_embeddings
    if context > most:
        raise RequestError(f"{source.name} has a context of {most} tokens, these workloads need {context}; use --only")
    weight_dtype = dtype_for(options.dtype, source.stored)
    device = open_device("cpu", threads=options.threads, isa=options.isa)
    stack.callback(device.close)
    kv_dtype = kv_dtype_for(options.kv_cache, weight_dtype)
    block_bytes = kv_block_bytes(source.config, device.info, kv_dtype)
    memory = sequences * -(-context // BLOCK_TOKENS) * block_bytes if kv_memory is None else kv_memory
    _, blocks = kv_room(context, most, sequences, memory, block_bytes)
    program = build(
        source.forward,
        source.config,
        device.info,
        dtype=weight_dtype,
        kv_dtype=kv_dtype,
        limits=limits_for(None),
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        quant=source.quant,
    )
    executable = device.create(program)
    stack.callback(executable.close)
    load_weights(program, source.weights, executable, progress=progress, threads=device.info.threads)
    engine = Engine(executable, program, max_context=context)
    stack.callback(engine.stop)
    return OpenEngine(engine, executable, program, device.info, weight_dtype)
