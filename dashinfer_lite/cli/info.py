"""Show the machine, the tiers of the CPU kernels and why each is or is not used, the devices, and a model.

Weights are not read: a model's folder is checked and measured from its configuration. Without --model the embedded demo
model is shown.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.terminal import Style, size, tolerate_encoding

if TYPE_CHECKING:
    import argparse

HELP = "what this machine offers, and what a model needs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `info` takes."""
    parser.add_argument("--model", metavar="FOLDER", help="a folder in the Hugging Face format; default: the embedded demo model")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"), help="type of the weights (default: as stored)")
    parser.add_argument("--kv-cache", default="auto", choices=("auto", "fp32", "bf16"), help="type of the KV cache (default: by the weights)")
    parser.add_argument("--program", action="store_true", help="also print the model's program, instruction by instruction")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Collect, then print."""
    tolerate_encoding()
    from dashinfer_lite.cli.info_model import describe_model
    from dashinfer_lite.devices import open_device

    device = open_device("cpu")
    try:
        facts = describe_machine(device.info.tier, device.info.threads)
        facts["model"], program = describe_model(args.model, device, args.dtype, args.kv_cache)
    finally:
        device.close()
    if args.program:
        facts["program"] = program.dump()
    print(json.dumps(facts, ensure_ascii=False) if args.json else _text(facts, Style(sys.stdout)))
    return 0


def describe_machine(used_tier: str, threads: int) -> dict[str, Any]:
    """Processor, memory, tiers and devices as plain values."""
    from dashinfer_lite import _native, devices

    cpu = _native.cpu()
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "version": _version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": {
            "vendor": cpu.get("vendor", ""),
            "model": cpu.get("model", ""),
            "features": cpu.get("features", "").split(),
            "caches": {name: int(cpu[name]) for name in ("l1d", "l2", "l3") if cpu.get(name, "").isdecimal()},
        },
        "memory_bytes": pages * page,
        "memory_free_bytes": os.sysconf("SC_AVPHYS_PAGES") * page,
        "threads": threads,
        "tiers": [_describe_tier(*tier, used_tier) for tier in _native.tiers()],
        "devices": [{"name": d.name, "usable": d.usable, "reason": d.reason} for d in devices()],
    }


def _describe_tier(name: str, runs: bool, missing: str, used: str) -> dict[str, Any]:
    if name == used:
        chosen = os.environ.get("DASHINFER_ISA") == name
        why = "DASHINFER_ISA asks for it" if chosen else "the best that this machine runs"
    elif runs:
        why = f"runs here, but {used} is used; DASHINFER_ISA={name} would choose it"
    else:
        why = f"this machine lacks {missing}"
    return {"name": name, "used": name == used, "runs": runs, "reason": why}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dashinfer-lite")
    except PackageNotFoundError:
        return "(not installed)"


def _text(facts: dict[str, Any], style: Style) -> str:
    processor = facts["processor"]
    caches = ", ".join(f"{name.upper()} {size(nbytes)}" for name, nbytes in processor["caches"].items())
    lines = [
        style.bold(f"dashinfer-lite {facts['version']}") + f" on Python {facts['python']}, {facts['system']}",
        "",
        style.bold("Machine"),
        _row("processor", processor["model"] or processor["vendor"]),
        _row("caches", caches or "not known"),
        _row("features", " ".join(processor["features"])),
        _row("memory", f"{size(facts['memory_bytes'])}, {size(facts['memory_free_bytes'])} free"),
        _row("threads", f"{facts['threads']}, the physical cores that this process may use (DASHINFER_NUM_THREADS changes it)"),
        "",
        style.bold("Tiers of the CPU kernels") + " (all give the same bits)",
        *(_row(tier["name"], _mark(style, tier["used"], tier["runs"]) + tier["reason"]) for tier in facts["tiers"]),
        "",
        style.bold("Devices"),
        *(_row(d["name"], style.good("usable") if d["usable"] else style.bad("no  ") + d["reason"]) for d in facts["devices"]),
        "",
        style.bold("Model"),
        *(_row(name, value) for name, value in _model_rows(facts["model"])),
    ]
    if "program" in facts:
        lines += ["", style.bold("Program"), facts["program"]]
    return "\n".join(lines)


def _model_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    tokenizer, memory = model["tokenizer"], model["memory"]
    ends = ", ".join(map(str, tokenizer["eos_token_ids"])) or "none"
    return [
        ("folder", model["folder"] + (" (the embedded demo model, a toy)" if model["demo"] else "")),
        ("family", f"{model['architecture']}, {model['parameters'] / 1e6:,.1f} million parameters"),
        (
            "sizes",
            f"{model['layers']} layers, hidden {model['hidden']}, {model['heads']} heads, {model['kv_heads']} KV heads, "
            f"head size {model['head_size']}, vocabulary {model['vocabulary']}",
        ),
        ("context", f"{model['context']} tokens"),
        ("dtype", f"stored as {model['stored_dtype']}, runs as {model['dtype']}: {model['dtype_note']}"),
        ("tokenizer", f"{tokenizer['kind']}, {tokenizer['size']} tokens, ends with {ends}"),
        ("chat", "has a chat template" if model["chat_template"] else "no chat template: plain prompts only"),
        (
            "memory",
            f"{size(memory['weights_bytes'])} of packed weights, {size(memory['kv_token_bytes'])} of {model['kv_dtype']} KV cache a token "
            f"({size(memory['kv_context_bytes'])} for a full context), {size(memory['arena_bytes'])} of activations",
        ),
    ]


def _mark(style: Style, used: bool, runs: bool) -> str:
    return style.good("used    ") if used else "        " if runs else style.bad("no      ")


def _row(name: str, text: str) -> str:
    return f"  {name:<10} {text}"
