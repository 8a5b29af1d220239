"""What a request gives back; the shapes are those that vLLM's users know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's log probability in the raw distribution, its rank (1: most likely), and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# The alternatives of one position: the token that is there, then the most likely ones.
Logprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from submission to the first step (queue_s), to the first token (ttft_s), and to the end (total_s).

    None for what has not happened yet.
    """

    queue_s: float | None = None
    ttft_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer.

    `finish_reason` is None while it grows. `stop_reason` is the stop string or the stop token id that ended it, None
    for the model's own end of text. `logprobs` has one dict a token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request's prompt and its answers.

    `prompt` is None where token ids were given. `prompt_logprobs` has one entry a prompt token, the first is None.
    `seed` is the one that was given or drawn; `error` says why an answer finished with "error".
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[Logprobs | None] | None = None
    finished: bool = True
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    seed: int = 0
    error: str | None = None

    @property
    def text(self) -> str:
        """The text of the first answer."""
        return self.outputs[0].text


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A prompt's vector: as many numbers as the model's hidden size."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: list[float]
    usage: Usage = field(default_factory=Usage)
