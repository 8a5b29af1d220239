"""Token counts as clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashinfer_lite.server.protocol.common import (
    CompletionTokensDetails,
    PromptLogprob,
    PromptLogprobs,
    PromptTokensDetails,
    Usage,
)

if TYPE_CHECKING:
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.outputs import Logprobs


def usage_of(requests: Sequence[Request], reasoning_tokens: int = 0, unasked: int = 0) -> Usage:
    """The counts of all requests together; `unasked` tokens were generated for the server alone."""
    prompt = sum(len(request.prompt_token_ids) for request in requests)
    completion = sum(request.usage.completion_tokens for request in requests) - unasked
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(request.cached_tokens for request in requests)),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
    )


def prompt_logprobs_of(positions: Sequence[Logprobs | None]) -> PromptLogprobs:
    """One entry a prompt token, by token id; the first is null."""
    return [
        None
        if entry is None
        else {
            str(token): PromptLogprob(logprob=found.logprob, rank=found.rank, decoded_token=found.decoded_token)
            for token, found in entry.items()
        }
        for entry in positions
    ]
