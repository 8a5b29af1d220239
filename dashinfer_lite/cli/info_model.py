"""A model as `info` shows it: measured from its configuration and its program, the weights unread."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.loading import (
    BLOCK_TOKENS,
    DTYPES,
    KV_DTYPES,
    demo_model_folder,
    dtype_for,
    kv_dtype_for,
    limits_for,
    quant_policy,
    step_limits,
)
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.text import Conversations, load_tokenizer
from dashinfer_lite.weights import ModelFolder

if TYPE_CHECKING:
    from dashinfer_lite.devices import Device
    from dashinfer_lite.graph.program import Program
    from dashinfer_lite.loading import Options

MODES = ("none", "a16w8", "a16w4-g128")
NAMES = {dtype: name for name, dtype in (DTYPES | KV_DTYPES).items()}


def describe_model(path: str | None, device: Device, options: Options) -> tuple[dict[str, Any], Program]:
    """Plain values about a model, and the program it runs as on the device; ModelError where it cannot be used."""
    folder = ModelFolder(demo_model_folder() if path is None else Path(path))
    model = find_model(folder.architecture, folder.config)
    config = model.config.from_folder(folder)
    with folder.open_weights() as weights:
        stored = folder.stored_dtype(weights)
        quant = quant_policy(options, folder, weights)
        parameters = sum(math.prod(weights.info(name).shape) for name in weights.names())
    weight_dtype = dtype_for(options.dtype, stored)
    kv_dtype = kv_dtype_for(options.kv_cache, weight_dtype)
    context = config.max_position_embeddings

    def program_of(policy: QuantPolicy) -> Program:
        return build(
            model.forward,
            config,
            device.info,
            dtype=weight_dtype,
            kv_dtype=kv_dtype,
            limits=step_limits(limits_for(None), config, context),
            blocks=-(-context // BLOCK_TOKENS),
            block_tokens=BLOCK_TOKENS,
            quant=policy,
        )

    program = program_of(quant)
    cost = cost_of(program, device.info.head_align)
    # A folder of integers stays on its grid; others can be quantized while loading.
    policies = {} if quant.grids else {mode: QuantPolicy.parse(mode) for mode in MODES}
    modes = {str(quant): cost.packed_bytes} | {
        mode: cost_of(program_of(policy), device.info.head_align).packed_bytes for mode, policy in policies.items()
    }
    facts = {
        "folder": str(folder.path),
        "demo": path is None,
        "family": config.family,
        "architecture": folder.architecture,
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_size": config.head_dim,
        "vocabulary": config.vocab_size,
        "context": context,
        "stored_dtype": NAMES[dtype_for("auto", stored)],
        "dtype": NAMES[weight_dtype],
        "dtype_note": _note(weight_dtype, device.info.tier),
        "quant": str(quant),
        "kv_dtype": NAMES[kv_dtype],
        **_describe_text(folder.path),
        "memory": {
            "weights_bytes": cost.packed_bytes,
            "kv_token_bytes": cost.kv_token_bytes,
            "kv_context_bytes": cost.kv_token_bytes * context,
            "arena_bytes": program.arena_bytes,
            "modes": modes,
        },
    }
    return facts, program


def _describe_text(path: Path) -> dict[str, Any]:
    """The tokenizer's kind and size, `error` in place of them where it cannot be used, and how conversations go."""
    facts: dict[str, Any]
    try:
        tokenizer = load_tokenizer(path)
    except ModelError as error:
        conversations, facts = Conversations.load(path, None), {"error": str(error)}
    else:
        conversations = Conversations.load(path, tokenizer)
        facts = {"kind": tokenizer.kind, "size": tokenizer.vocab_size, "eos_token_ids": list(tokenizer.eos_token_ids)}
    return {"tokenizer": facts, "chat_template": conversations.available, "chat_format": conversations.name}


def _note(dtype: str, tier: str) -> str:
    """What a weight type means on a tier, and which is fast."""
    if dtype == "bf16":
        return "fast, by tile products" if tier == "amx" else "fast; widened to fp32 in registers"
    if dtype == "f16":
        faster = "bf16 is faster here" if tier == "amx" else "as fast as bf16 here"
        return f"half the memory of fp32, widened to fp32 in registers; {faster}"
    return "exact for fp32 models; bf16 halves the memory and is faster"
