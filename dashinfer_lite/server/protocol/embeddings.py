"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from dashinfer_lite.server.protocol.common import Count, Name
from dashinfer_lite.server.protocol.completions import Prompts
from dashinfer_lite.server.protocol.sampling import Bookkeeping


class EmbeddingRequest(Bookkeeping, kw_only=True, forbid_unknown_fields=True):
    """Texts or token ids to embed. `dimensions` keeps the first so many numbers; `normalize` scales to length 1."""

    input: Prompts
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None


class Embedding(Struct, kw_only=True):
    """Numbers, or the base64 form of their little-endian fp32 bytes."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(Struct, kw_only=True):
    """One embedding an input, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
