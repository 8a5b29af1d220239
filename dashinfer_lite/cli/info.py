"""Show the machine, the tiers of the CPU kernels and why each is or is not used, the devices, and a model.

Weights are not read: a model's folder is checked and measured from its configuration. Without a folder the embedded
demo model is shown.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from dashinfer_lite import __version__
from dashinfer_lite.cli.options import add_model_option, add_type_options
from dashinfer_lite.cli.terminal import Style, size, tolerate_encoding

if TYPE_CHECKING:
    import argparse

HELP = "what this machine offers, and what a model needs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `info` takes."""
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="the same as --model FOLDER")
    add_model_option(parser)
    add_type_options(parser)
    parser.add_argument("--program", action="store_true", help="also print the model's program as a table")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Collect, then print."""
    tolerate_encoding()
    from dashinfer_lite.cli.info_model import describe_model
    from dashinfer_lite.devices import open_device
    from dashinfer_lite.loading import Options

    options = Options(**{name: getattr(args, name) for name in ("dtype", "quant", "head", "kv_cache")})
    device = open_device("cpu")
    try:
        facts = describe_machine(device.info.tier, device.info.threads)
        facts["model"], program = describe_model(args.model or args.folder, device, options)
    finally:
        device.close()
    if args.program:
        facts["program"] = program.dump()
    print(json.dumps(facts, ensure_ascii=False) if args.json else _text(facts, Style(sys.stdout)))
    return 0


def describe_machine(used_tier: str, threads: int) -> dict[str, Any]:
    """Processor, memory, tiers and devices as plain values."""
    from dashinfer_lite import _native
    from dashinfer_lite.devices import devices

    cpu = _native.cpu()
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "version": __version__,
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
        _row("threads", f"{facts['threads']} (physical cores within affinity and quota, or DASHINFER_NUM_THREADS)"),
        "",
        style.bold("Tiers of the CPU kernels") + " (all give the same bits)",
        *(_row(tier["name"], _mark(style, tier["used"], tier["runs"]) + tier["reason"]) for tier in facts["tiers"]),
        "",
        style.bold("Devices"),
        *(_row(device["name"], _device_text(device, style)) for device in facts["devices"]),
        "",
        style.bold("Model"),
        *(_row(name, value) for name, value in _model_rows(facts["model"])),
    ]
    if "program" in facts:
        lines += ["", style.bold("Program"), facts["program"]]
    return "\n".join(lines)


def _device_text(device: dict[str, Any], style: Style) -> str:
    return style.good("usable") if device["usable"] else style.bad("no") + f"       {device['reason']}"


def _model_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    memory = model["memory"]
    sizes = (
        f"{model['layers']} layers, hidden {model['hidden']}, {model['heads']} heads, {model['kv_heads']} KV heads, "
        f"head size {model['head_size']}, vocabulary {model['vocabulary']}"
    )
    needs = (
        f"{size(memory['weights_bytes'])} of packed weights, {size(memory['arena_bytes'])} of activations, "
        f"{size(memory['kv_token_bytes'])} of {model['kv_dtype']} KV cache a token "
        f"({size(memory['kv_context_bytes'])} for a full context)"
    )
    return [
        ("folder", model["folder"] + (" (the embedded demo model, a toy)" if model["demo"] else "")),
        ("family", f"{model['family']} ({model['architecture']}), {model['parameters'] / 1e6:,.2f} million parameters"),
        ("sizes", sizes),
        ("context", f"{model['context']} tokens"),
        ("dtype", f"stored as {model['stored_dtype']}, runs as {model['dtype']}: {model['dtype_note']}"),
        ("quant", model["quant"] if model["quant"] != "none" else "none; --quant a16w8 halves the weights"),
        ("tokenizer", _tokenizer_text(model["tokenizer"])),
        ("chat", _chat_text(model["chat_format"])),
        ("memory", needs),
        ("", "packed weights by mode: " + ", ".join(f"{mode} {size(n)}" for mode, n in memory["modes"].items())),
    ]


def _chat_text(name: str | None) -> str:
    if name is None:
        return "no chat template: plain prompts only"
    return "has a chat template" if name == "template" else f"no chat template: the chat format of {name}"


def _tokenizer_text(tokenizer: dict[str, Any]) -> str:
    if "error" in tokenizer:
        return f"none that can be used: {tokenizer['error']}"
    ends = ", ".join(map(str, tokenizer["eos_token_ids"])) or "no token"
    return f"{tokenizer['kind']}, {tokenizer['size']} tokens, a text ends with {ends}"


def _mark(style: Style, used: bool, runs: bool) -> str:
    return style.good("used    ") if used else "        " if runs else style.bad("no      ")


def _row(name: str, text: str) -> str:
    return f"  {name:<10} {text}"
