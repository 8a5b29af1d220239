"""Random tiny models as other tools would quantize them: GPTQ, AWQ, FP8 and our own folders, packed bit by bit.

Written from the formats' descriptions, not from the readers: words are assembled one code at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from model_folders import bf16_bits, random_tensors

Tensors = dict[str, np.ndarray]
TYPE_NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8", "int16": "I16", "int32": "I32"}
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def matrices(config: dict[str, Any]) -> list[str]:
    """The tensors that every tool quantizes: those of the layers' linears."""
    return [name for name in random_tensors(config) if name.endswith("_proj.weight")]


def quantized(w: np.ndarray, bits: int, group_of: np.ndarray, symmetric: bool) -> tuple[np.ndarray, ...]:
    """Codes [N,K], fp16 scales [N,G] and zero points [N,G] of w[N,K], with the group of each column."""
    top, groups = (1 << bits) - 1, int(group_of.max()) + 1
    scales, zeros = np.zeros((len(w), groups), np.float16), np.zeros((len(w), groups), np.int64)
    codes = np.zeros(w.shape, np.int64)
    for g in range(groups):
        mine = group_of == g
        low, high = np.minimum(w[:, mine].min(1), 0), np.maximum(w[:, mine].max(1), 0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, g] = (high - low) / top
        step = scales[:, g].astype(np.float64)[:, None]
        zeros[:, g] = (1 << (bits - 1)) if symmetric else np.clip(np.rint(-low / step[:, 0]), 0, top)
        codes[:, mine] = np.clip(np.rint(w[:, mine] / step) + zeros[:, g : g + 1], 0, top)
    return codes, scales, zeros


def words(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 words along the last axis; position p of a word holds code order[p]."""
    count = 32 // bits
    result = np.zeros((*codes.shape[:-1], codes.shape[-1] // count), np.uint32)
    for position in range(count):
        column = order[position] if order else position
        result |= codes[..., column::count].astype(np.uint32) << np.uint32(bits * position)
    return result.view(np.int32)


def gptq(
    config: dict[str, Any],
    *,
    bits: int = 4,
    group: int = 16,
    act_order: bool = False,
    version: int = 1,
    symmetric: bool = False,
    g_idx: bool = True,
    expert_orders: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Any], Tensors, Tensors]:
    """(config, tensors of the folder, the plain model that they stand for)."""
    plain, packed = random_tensors(config, seed), {}
    rng = np.random.default_rng(seed)
    orders: dict[tuple[int, str], np.ndarray] = {}
    for name in matrices(config):
        w, module = plain[name], name.removesuffix(".weight")
        n, k = w.shape
        group_of = np.arange(k) // (group if group > 0 else k)
        if act_order:
            # Tools sort K by importance; matrices with the same input share the order, down_proj has its own. Experts
            # with `expert_orders` have seen different tokens.
            expert = name.partition("experts.")[2].partition(".")[0] if expert_orders else ""
            group_of = group_of[orders.setdefault((k, expert), rng.permutation(k))]
        codes, scales, zeros = quantized(w, bits, group_of, symmetric)
        plain[name] = ((codes - zeros[:, group_of]).astype(np.float32) * scales[:, group_of].astype(np.float32)).astype(
            np.float32
        )
        stored = (zeros - 1) & ((1 << bits) - 1) if version == 1 else zeros
        padding = -n % (32 // bits)
        packed[f"{module}.qweight"] = np.ascontiguousarray(words(codes, bits).T)
        packed[f"{module}.qzeros"] = words(np.pad(stored.T, ((0, 0), (0, padding))), bits)
        packed[f"{module}.scales"] = np.ascontiguousarray(scales.T)
        if g_idx:
            packed[f"{module}.g_idx"] = group_of.astype(np.int32)
    description = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric}
    if version == 2:
        description["checkpoint_format"] = "gptq_v2"
    return _folder(config, plain, packed, description)


def awq(config: dict[str, Any], *, group: int = 16, seed: int = 0) -> tuple[dict[str, Any], Tensors, Tensors]:
    """(config, tensors of the folder, the plain model that they stand for)."""
    plain, packed = random_tensors(config, seed), {}
    for name in matrices(config):
        w, module = plain[name], name.removesuffix(".weight")
        group_of = np.arange(w.shape[1]) // (group if group > 0 else w.shape[1])
        codes, scales, zeros = quantized(w, 4, group_of, False)
        plain[name] = ((codes - zeros[:, group_of]).astype(np.float32) * scales[:, group_of].astype(np.float32)).astype(
            np.float32
        )
        packed[f"{module}.qweight"] = words(codes.T, 4, AWQ_COLUMNS)
        packed[f"{module}.qzeros"] = words(zeros.T, 4, AWQ_COLUMNS)
        packed[f"{module}.scales"] = np.ascontiguousarray(scales.T)
    description = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return _folder(config, plain, packed, description)


def fp8(
    config: dict[str, Any], *, block: tuple[int, int] = (32, 20), seed: int = 0
) -> tuple[dict[str, Any], Tensors, Tensors]:
    """(config, tensors of the folder, the plain model that they stand for); bits of 8-bit floats are random."""
    plain, packed = random_tensors(config, seed), {}
    rng = np.random.default_rng(seed)
    for name in matrices(config):
        n, k = plain[name].shape
        octets = rng.integers(0, 256, (n, k)).astype(np.uint8)
        octets[(octets & 127) == 127] = 0  # NaN
        exponent, mantissa = (octets >> 3 & 15).astype(np.int64), (octets & 7).astype(np.float64)
        values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        values = np.where(octets >> 7, -values, values)
        scales = (rng.random((-(-n // block[0]), -(-k // block[1]))) / 100 / np.sqrt(k)).astype(np.float32)
        by_element = np.array([[scales[i // block[0], j // block[1]] for j in range(k)] for i in range(n)])
        plain[name] = values.astype(np.float32) * by_element
        packed[name] = octets
        packed[f"{name}_scale_inv"] = scales
    description = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    return _folder(config, plain, packed, description)


def own(
    config: dict[str, Any],
    *,
    bits: int = 4,
    group: int = 16,
    head: bool = True,
    scale_type: str = "float32",
    seed: int = 0,
) -> tuple[dict[str, Any], Tensors, Tensors]:
    """(config, tensors of the folder, the plain model that they stand for)."""
    plain, packed, modules = random_tensors(config, seed), {}, {}
    last = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    for name in [*matrices(config), *([last] if head else [])]:
        w, module = plain[name], name.removesuffix(".weight")
        n, k = w.shape
        my_bits, my_group = (8, 0) if name == last else (bits, group)
        group_of = np.arange(k) // (my_group or k)
        codes, scales, zeros = quantized(w, my_bits, group_of, False)
        values = scales.astype(np.float32)
        if scale_type == "bfloat16":
            values = (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)
        plain[name] = (codes - zeros[:, group_of]).astype(np.float32) * values[:, group_of]
        if my_bits == 4:
            codes = np.pad(codes, ((0, 0), (0, k % 2)))
            codes = codes[:, ::2] | codes[:, 1::2] << 4
        packed[f"{name}.codes"] = codes.astype(np.uint8)
        packed[f"{name}.scales"] = bf16_bits(values) if scale_type == "bfloat16" else values.astype(scale_type)
        packed[f"{name}.zeros"] = zeros.astype(np.uint8)
        modules[module] = {"bits": my_bits, "group": my_group, "shape": [n, k]}
    mode = f"a16w{bits}" + (f"-g{group}" if group in (32, 64, 128, 256, 512) else "")
    description = {
        "quant_method": "dashinfer",
        "version": 1,
        "quant": mode,
        "head": "int8" if head else "bf16",
        "overrides": {},
        "modules": modules,
    }
    return _folder(config, plain, packed, description)


def write_folder(path: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Writes config.json and one safetensors file; uint8 matrices with a scale beside them are 8-bit floats."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    header, data = {}, bytearray()
    for name, values in tensors.items():
        kind = "F8_E4M3" if f"{name}_scale_inv" in tensors else TYPE_NAMES[values.dtype.name]
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + values.nbytes],
        }
        data += np.ascontiguousarray(values).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _folder(
    config: dict[str, Any], plain: Tensors, packed: Tensors, description: dict[str, Any]
) -> tuple[dict[str, Any], Tensors, Tensors]:
    gone = {name for name in plain if any(key.startswith(name.removesuffix("weight")) for key in packed)}
    gone -= {name for name in plain if name.endswith(".bias")}
    others = {name: values for name, values in plain.items() if name not in gone}
    return {**config, "quantization_config": description}, {**others, **packed}, plain
