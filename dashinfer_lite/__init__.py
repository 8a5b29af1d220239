"""DashInfer Lite: large language models on the CPU, inside your program.

    from dashinfer_lite import LLM, SamplingParams

    with LLM("folder") as llm:
        print(llm.generate("Once upon a time", SamplingParams(max_tokens=64))[0].text)

Names are imported on first use: importing the package loads neither NumPy nor a tokenizer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dashinfer_lite import devices
    from dashinfer_lite.async_llm import AsyncLLM
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.errors import (
        CancelledError,
        CapacityError,
        DashInferError,
        DeviceError,
        ModelError,
        RequestError,
    )
    from dashinfer_lite.graph.quant import QuantPolicy
    from dashinfer_lite.guided import Guided
    from dashinfer_lite.llm import LLM
    from dashinfer_lite.outputs import CompletionOutput, EmbeddingOutput, Logprob, RequestOutput, Timings, Usage
    from dashinfer_lite.sampling_params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "CancelledError",
    "CapacityError",
    "CompletionOutput",
    "DashInferError",
    "DeviceError",
    "EmbeddingOutput",
    "Guided",
    "Logprob",
    "ModelError",
    "QuantPolicy",
    "Request",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "Timings",
    "Usage",
    "__version__",
    "devices",
]

_HOME = {
    "AsyncLLM": "async_llm",
    "CancelledError": "errors",
    "CapacityError": "errors",
    "CompletionOutput": "outputs",
    "DashInferError": "errors",
    "DeviceError": "errors",
    "EmbeddingOutput": "outputs",
    "Guided": "guided",
    "LLM": "llm",
    "Logprob": "outputs",
    "ModelError": "errors",
    "QuantPolicy": "graph.quant",
    "Request": "engine",
    "RequestError": "errors",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "Timings": "outputs",
    "Usage": "outputs",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name == "devices":
        return import_module("dashinfer_lite.devices")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dashinfer_lite.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
