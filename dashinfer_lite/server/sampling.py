"""The sampling fields of a request as SamplingParams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.server.errors import invalid

if TYPE_CHECKING:
    from dashinfer_lite.server.protocol.sampling import Sampling
    from dashinfer_lite.server.service import Service

# Fields that have the same name and meaning in SamplingParams; null leaves the default.
SAME: Final = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "logit_bias",
    "bad_words",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "prompt_logprobs",
)


def sampling_params(service: Service, body: Sampling, **more: Any) -> SamplingParams:
    """The parameters of a request; `more` are those that chats and completions name differently."""
    if body.n is not None and body.n > service.settings.max_n:
        raise invalid(f"n is {body.n}; this server gives at most {service.settings.max_n} answers", param="n")
    values = service.generation_defaults | {name: value for name in SAME if (value := getattr(body, name)) is not None}
    if body.seed is not None:
        values["seed"] = body.seed % 2**64
    return SamplingParams(**values, **more)


def submit_options(body: Sampling) -> dict[str, Any]:
    """What `LLM.submit` takes beside prompt and parameters."""
    return {"priority": body.priority or 0, "cache_salt": body.cache_salt}
