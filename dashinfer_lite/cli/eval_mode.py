"""The modes that an evaluation compares: how weights and KV cache are kept, written as one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dashinfer_lite.errors import RequestError

TYPES: Final = ("bf16", "fp16", "fp32")
STORED: Final = "stored"
DEFAULT: Final = ("a16w8", "a8w8", "a16w4-g64", "a16w4-g128", "kv-int8", "kv-uint4")
DEFAULT_OF_QUANTIZED: Final = ("kv-int8", "kv-uint4")

GRAMMAR: Final = """\
A mode joins with + what differs from the folder: a type without quantization (bf16, fp16, fp32) or a quantization
of the weights (a16w8, a8w8, a16w4-g128, ...), head-bf16 or head-int8, and kv-fp32, kv-bf16, kv-int8 or kv-uint4;
"stored" is the folder as it is."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode's name, and the parameters of LLM that make it; None: as the caller's options say."""

    name: str
    dtype: str | None = None
    quant: str | None = None
    head: str | None = None
    kv_cache: str | None = None

    @classmethod
    def parse(cls, name: str) -> Mode:
        """Read a mode such as "a16w4-g128+kv-int8"; RequestError for a part that occurs twice."""
        values: dict[str, str] = {}
        for part in name.split("+"):
            if part == STORED:
                continue
            if part in TYPES:
                keys = {"dtype": part, "quant": "none"}
            elif part.startswith("kv-"):
                keys = {"kv_cache": part.removeprefix("kv-")}
            elif part.startswith("head-"):
                keys = {"head": part.removeprefix("head-")}
            elif part:
                keys = {"quant": part}
            else:
                raise RequestError(f"{name!r} is not a mode. {GRAMMAR}")
            if twice := keys.keys() & values.keys():
                raise RequestError(f"{name!r} is not a mode: it says {twice.pop()} twice. {GRAMMAR}")
            values |= keys
        return cls(name, **values)
