"""The shapes in which prompts, conversations and parameters are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashinfer_lite.errors import RequestError
from dashinfer_lite.sampling_params import SamplingParams

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
Params = SamplingParams | Sequence[SamplingParams] | None

_EXPECTED = "a prompt is a text or a list of token ids, and several are a list of these"


def listed_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, (bytes, Mapping)) or not hasattr(prompts, "__iter__"):
        raise RequestError(f"{_EXPECTED}; this is {type(prompts).__name__}")
    listed: list[Any] = list(prompts)
    if not listed:
        raise RequestError(f"{_EXPECTED}; this list is empty")
    if is_single_prompt(prompts):
        return [listed]
    return listed


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether it is a text, or a list that does not hold texts or lists."""
    return isinstance(prompts, str) or not any(isinstance(item, str) or hasattr(item, "__iter__") for item in prompts)


def is_single_conversation(messages: Messages | Sequence[Messages]) -> bool:
    """Whether it is a list of messages, rather than one of conversations."""
    return not (
        isinstance(messages, (list, tuple)) and messages and all(isinstance(item, (list, tuple)) for item in messages)
    )


def params_for_each(params: Params, count: int) -> list[SamplingParams | None]:
    """The parameters of each of `count` prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, (list, tuple)) or not all(isinstance(item, SamplingParams) for item in params):
        raise RequestError(f"params must be SamplingParams or a list of them, not {type(params).__name__}")
    if len(params) != count:
        raise RequestError(
            f"there are {len(params)} sampling parameters for {count} prompts; give one for all, or one each"
        )
    return list(params)
