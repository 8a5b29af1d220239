"""From a model folder to an executable with its weights."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dashinfer_lite.devices import Device, DeviceInfo, Executable, open_device
from dashinfer_lite.errors import CapacityError, ModelError, RequestError
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.plan import kv_token_bytes
from dashinfer_lite.graph.program import DType, Limits, Program
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.text import load_tokenizer
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.loader import load_weights
from dashinfer_lite.weights.packed import PackedReader
from dashinfer_lite.weights.quantized import QuantizedReader

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Any

    from dashinfer_lite.text import Tokenizer
    from dashinfer_lite.weights import WeightReader

DTYPES: Final[dict[str, DType]] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
KV_DTYPES: Final[dict[str, DType]] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "u8", "uint4": "u4"}
BLOCK_TOKENS: Final = 32
MAX_BATCH: Final = 64
STEP_TOKENS: Final = 512
_UNITS: Final = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "ice_text.model", "*.tiktoken")

_log = logging.getLogger("dashinfer_lite")


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is loaded; the fields are LLM's parameters."""

    device: str = "cpu"
    dtype: str = "auto"
    kv_cache: str = "auto"
    kv_memory: str | int = "2GiB"
    threads: int | None = None
    max_context: int | None = None
    max_batch: int | None = None
    isa: str | None = None
    passes: Iterable[str] | None = None
    progress: Callable[[int, int], object] | None = None
    quant: str | QuantPolicy | None = None
    head: str | None = None
    host_kv_memory: str | int = 0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run; `close` gives everything back."""

    folder: ModelFolder
    config: Any
    device: Device
    program: Program
    executable: Executable
    tokenizer: Tokenizer | None
    dtype: DType
    quant: QuantPolicy
    max_context: int
    load_s: float

    @property
    def head(self) -> str:
        """The type of the LM head: "int8", "bf16" and so on."""
        tensor = f"{self.program.notes['head']}.weight"
        names = {"u8": "int8", "u4": "int4"} | {dtype: name for name, dtype in DTYPES.items()}
        return next(names[spec.dtype] for spec in self.program.weights for part in spec.parts if part.name == tensor)

    def close(self) -> None:
        self.executable.close()
        self.device.close()


def load_model(path: str | os.PathLike[str] | None, options: Options) -> LoadedModel:
    """Open folder, tokenizer, device and program, then read the weights; what has been opened is closed on errors.

    ModelError, DeviceError and CapacityError say what is wrong; CancelledError where `progress` returned False.
    """
    begin = time.perf_counter()
    limits = limits_for(options.max_batch)
    memory = parse_size("kv_memory", options.kv_memory)
    host_memory = parse_size("host_kv_memory", options.host_kv_memory, least=0)
    folder = ModelFolder(demo_model_folder() if path is None else path)
    model = find_model(folder.architecture, folder.config)
    config = model.config.from_folder(folder)
    tokenizer = _tokenizer(folder.path)
    with folder.open_weights() as weights:
        dtype = dtype_for(options.dtype, folder.stored_dtype(weights))
        quant = quant_policy(options, folder, weights)
        kv_dtype = kv_dtype_for(options.kv_cache, dtype)
        device = open_device(options.device, threads=options.threads, isa=options.isa)
        try:
            if kv_dtype == "f16" and device.info.name == "cpu":
                raise RequestError("kv_cache='fp16' is for GPUs; on the CPU use 'bf16' or 'fp32'")
            block_bytes = kv_block_bytes(config, device.info, kv_dtype)
            max_context, blocks = kv_room(
                options.max_context, config.max_position_embeddings, limits.max_seqs, memory, block_bytes
            )
            host_blocks = host_kv_blocks(host_memory, block_bytes, device.info)
            limits = step_limits(limits, config, max_context)
            program = build(
                model.forward, config, device.info, dtype=dtype, kv_dtype=kv_dtype, limits=limits, blocks=blocks,
                block_tokens=BLOCK_TOKENS, passes=options.passes, quant=quant, host_blocks=host_blocks,
            )  # fmt: skip
            executable = device.create(program)
            try:
                report, cancelled = _progress(options.progress)
                load_weights(
                    program, weights, executable, progress=report, threads=device.info.threads, cancelled=cancelled
                )
            except BaseException:
                executable.close()
                raise
        except BaseException:
            device.close()
            raise
    seconds = time.perf_counter() - begin
    return LoadedModel(folder, config, device, program, executable, tokenizer, dtype, quant, max_context, seconds)


def demo_model_folder() -> Path:
    """The folder of the embedded demo model."""
    from importlib.resources import files

    folder = files("dashinfer_lite") / "assets" / "tiny_chat"
    if not isinstance(folder, Path) or not folder.is_dir():
        raise ModelError(f"{folder}: the embedded demo model is missing; this installation is incomplete")
    return folder


def dtype_for(asked: str, stored: str) -> DType:
    """The type that weights are kept in; RequestError for an unknown name."""
    if asked == "auto":
        return _checked_dtype(stored)
    if asked not in DTYPES:
        raise RequestError(f"dtype is {asked!r}; it must be auto, {', '.join(DTYPES)}")
    return DTYPES[asked]


def quant_policy(options: Options, folder: ModelFolder, weights: WeightReader) -> QuantPolicy:
    """Which matrices run in integers, from what is asked for and what the folder holds.

    Matrices that the folder holds as integers stay so, unless `quant` is "none", or is left out and dtype is "fp32":
    then they become numbers again. RequestError for a mode that is not known or does not fit the folder.
    """
    grids = weights.grids if isinstance(weights, QuantizedReader) else {}
    if options.quant == "none" or (options.quant is None and options.dtype == "fp32"):
        return QuantPolicy.parse(None, head=options.head)
    if options.quant is None and grids:
        written = (folder.quantization or {}) if isinstance(weights, PackedReader) else {}
        policy = QuantPolicy.from_description({"head": "bf16", **written})
    elif isinstance(options.quant, QuantPolicy):
        policy = options.quant
    else:
        policy = QuantPolicy.parse(options.quant, head=options.head)
    if options.head is not None:
        policy = replace(policy, head=QuantPolicy.parse(None, head=options.head).head)
    return policy.with_grids(grids) if grids else policy


def kv_dtype_for(asked: str, dtype: DType) -> DType:
    """The type of the KV cache; "auto" is bf16 beside bf16 weights, else fp32."""
    if asked == "auto":
        return "bf16" if dtype == "bf16" else "f32"
    if asked not in KV_DTYPES:
        raise RequestError(f"kv_cache is {asked!r}; it must be auto, {', '.join(KV_DTYPES)}")
    return KV_DTYPES[asked]


def step_limits(limits: Limits, config: Any, max_context: int) -> Limits:
    """The capacities for a model: one that sees its prompts as a whole computes them in one step."""
    return replace(limits, max_tokens=max(limits.max_tokens, max_context)) if config.whole_prompts else limits


def limits_for(max_batch: int | None) -> Limits:
    """The capacities of a step for so many sequences."""
    if max_batch is None:
        max_batch = MAX_BATCH
    if isinstance(max_batch, bool) or not isinstance(max_batch, int) or not 1 <= max_batch <= 4096:
        raise RequestError(f"max_batch is {max_batch!r}; it must be an integer from 1 to 4096")
    return Limits(max_tokens=max(STEP_TOKENS, max_batch), max_seqs=max_batch)


def kv_block_bytes(config: Any, info: DeviceInfo, kv_dtype: DType) -> int:
    """Bytes of a block of keys and values in all layers."""
    head_size = -(-config.head_dim // info.head_align) * info.head_align
    return int(
        config.num_hidden_layers * config.num_key_value_heads * BLOCK_TOKENS * kv_token_bytes(kv_dtype, head_size)
    )


def kv_room(
    max_context: int | None, model_context: int, max_batch: int, memory: int, block_bytes: int
) -> tuple[int, int]:
    """The longest context, and the number of KV blocks.

    A context that was asked for must fit as a whole (CapacityError); the model's own is cut to what fits. There are
    never more blocks than `max_batch` full contexts need.
    """
    if max_context is not None and (
        isinstance(max_context, bool) or not isinstance(max_context, int) or not 2 <= max_context <= 2**24
    ):
        raise RequestError(f"max_context is {max_context!r}; it must be an integer from 2 to {2**24}")
    blocks = memory // block_bytes
    context = model_context if max_context is None else max_context
    room = blocks * BLOCK_TOKENS
    if room < (context if max_context is not None else 2):
        needed = -(-context // BLOCK_TOKENS) * block_bytes / 2**20
        raise CapacityError(
            f"a context of {context} tokens needs {needed:.1f} MiB of KV cache, and kv_memory of "
            f"{memory / 2**20:.1f} MiB holds {room} tokens; raise kv_memory or lower max_context"
        )
    if room < context:
        _log.info("kv_memory holds %d tokens, so the context is cut to that from the model's %d", room, context)
        context = room
    return context, min(blocks, -(-context // BLOCK_TOKENS) * max_batch)


def host_kv_blocks(memory: int, block_bytes: int, info: DeviceInfo) -> int:
    """How many KV blocks the host keeps for a device whose memory is another one.

    RequestError where the device's memory is the host's, CapacityError where there is room for none.
    """
    if memory and info.unified_memory:
        raise RequestError(
            f"host_kv_memory is for devices with a memory of their own; {info.name!r} has its KV cache in host memory "
            "already: raise kv_memory instead"
        )
    if 0 < memory < block_bytes:
        raise CapacityError(
            f"host_kv_memory of {memory} bytes holds no block of {BLOCK_TOKENS} tokens, which has {block_bytes} bytes"
        )
    return min(memory // block_bytes, 2**31 - 1)


def parse_size(name: str, value: str | int, least: int = 1) -> int:
    """Bytes of a size such as "2GiB", "1.5 GB", "512MiB" or a plain number; RequestError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63:
        return value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B?)\s*", value, re.IGNORECASE)
        if found is not None:
            size = int(float(found[1]) * _UNITS[found[2].upper().removeprefix("B")])
            if least <= size < 2**63:
                return size
    raise RequestError(f'{name} is {value!r:.40}; it must be a number of bytes or a size such as "2GiB" or "512MB"')


def _checked_dtype(stored: str) -> DType:
    for dtype in DTYPES.values():
        if dtype == stored:
            return dtype
    raise ModelError(f"the weights are stored as {stored!r}, which cannot be run as it is; choose a dtype")


def _tokenizer(path: Path) -> Tokenizer | None:
    """The folder's tokenizer; None where it has none at all, which is enough for prompts of token ids."""
    if not any(any(path.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return None
    return load_tokenizer(path)


def _progress(
    progress: Callable[[int, int], object] | None,
) -> tuple[Callable[[int, int], None] | None, Callable[[], bool] | None]:
    """A user's progress function as the loader takes it; one that returns False cancels."""
    if progress is None:
        return None, None
    stopped = False

    def report(done: int, total: int) -> None:
        nonlocal stopped
        stopped = progress(done, total) is False

    return report, lambda: stopped
