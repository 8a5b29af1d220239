"""A model as `info` shows it: measured from its configuration, the weights unread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.llm import DTYPES, demo_model_folder, kv_dtype_for
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.text import ChatTemplate, load_tokenizer
from dashinfer_lite.weights import ModelFolder

if TYPE_CHECKING:
    from dashinfer_lite.devices import Device
    from dashinfer_lite.graph.program import Program

NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


def describe_model(folder_name: str | None, device: Device, dtype: str, kv_cache: str) -> tuple[dict[str, Any], Program]:
    """Plain values about a model, and the program it would run as on the device; ModelError where it cannot be used."""
    path = Path(folder_name) if folder_name is not None else demo_model_folder()
    folder = ModelFolder(path)
    model = find_model(folder.architecture)
    config = model.config.from_folder(folder)
    with folder.open_weights() as weights:
        stored = folder.stored_dtype(weights)
    raise NotImplementedError
