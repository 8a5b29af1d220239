"""POST /v1/embeddings: vectors of texts."""

from __future__ import annotations

import base64
import math
from array import array
from typing import TYPE_CHECKING

from dashinfer_lite.server.answers import check_end
from dashinfer_lite.server.errors import invalid
from dashinfer_lite.server.protocol.embeddings import Embedding, EmbeddingReply, EmbeddingRequest, EmbeddingUsage
from dashinfer_lite.server.text import encode_prompts

if TYPE_CHECKING:
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.server.service import Service


async def embed(service: Service, body: EmbeddingRequest) -> EmbeddingReply:
    """The vector of each input, in order; of length 1 unless that is not wanted, and cut to `dimensions` before."""
    service.check_model(body.model)
    size = service.llm.embedding_size
    if body.dimensions is not None and body.dimensions > size:
        raise invalid(f"dimensions is {body.dimensions}; the model has {size}", param="dimensions")
    inputs = await service.prepare(encode_prompts, service.llm, body.input, service.settings.max_prompts, "input")
    requests: list[Request] = []
    try:
        for ids in inputs:
            requests.append(service.submit_embedding(ids, body.pooling or "last", body.priority or 0))
        for request in requests:
            await request
            check_end(request)
    finally:
        for request in requests:
            request.cancel()
    data = [Embedding(index=at, embedding=_vector(request, body)) for at, request in enumerate(requests)]
    tokens = sum(len(ids) for ids in inputs)
    return EmbeddingReply(
        data=data, model=service.name, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    )


def _vector(request: Request, body: EmbeddingRequest) -> list[float] | str:
    vector = (request.embedding or [])[: body.dimensions]
    if body.normalize is not False:
        length = math.sqrt(math.fsum(value * value for value in vector))
        vector = [value / length for value in vector] if length else vector
    if body.encoding_format != "base64":
        return vector
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
