"""The engine: continuous batching over a paged KV cache. README.md walks a request through the files."""

from dashinfer_lite.engine.codec import AnswerText, Codec
from dashinfer_lite.engine.engine import Engine
from dashinfer_lite.engine.request import Request, Status

__all__ = ["AnswerText", "Codec", "Engine", "Request", "Status"]
