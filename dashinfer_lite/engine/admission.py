"""What must hold for a request before it may enter an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import TYPE_CHECKING

from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    from dashinfer_lite.engine.codec import Codec
    from dashinfer_lite.sampling_params import SamplingParams


def checked_prompt(prompt: Iterable[int], vocab_size: int, max_context: int) -> list[int]:
    """The prompt as a list of ints; RequestError where it is empty, too long or holds what is no token of the model."""
    if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Iterable):
        raise RequestError(f"a prompt of token ids must be a list of integers, not {type(prompt).__name__}")
    ids = list(prompt)
    if not set(map(type, ids)) <= {int}:
        ids = [_token_id(position, value) for position, value in enumerate(ids)]
    if not ids:
        raise RequestError("the prompt is empty; it must have at least one token")
    if len(ids) >= max_context:
        raise RequestError(
            f"the prompt has {len(ids)} tokens; with at least one token of an answer it must fit into a context of "
            f"{max_context} tokens (limited by the model, max_context and kv_memory)"
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        position, token = next((p, t) for p, t in enumerate(ids) if not 0 <= t < vocab_size)
        raise RequestError(f"prompt token {position} is {token}; the model has the tokens 0 to {vocab_size - 1}")
    return ids


def check_params(
    params: SamplingParams, vocab_size: int, max_logprobs: int, has_codec: bool, has_grammars: bool = False
) -> None:
    """RequestError where valid parameters ask for what this model or engine does not have."""
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        if count is not None and count > min(max_logprobs, vocab_size):
            raise RequestError(f"{name} is {count}; it must be an integer from 0 to {min(max_logprobs, vocab_size)}")
    for name, tokens in (
        ("logit_bias", params.logit_bias or ()),
        ("stop_token_ids", params.stop_token_ids),
        ("bad_words", [token for word in params.bad_words if not isinstance(word, str) for token in word]),
    ):
        for token in tokens:
            if token >= vocab_size:
                raise RequestError(f"{name} has token {token}; the model has the tokens 0 to {vocab_size - 1}")
    if not has_codec and (params.stop or any(isinstance(word, str) for word in params.bad_words)):
        raise RequestError("stop strings and bad words given as text need a tokenizer, and this engine has none")
    if not has_grammars and params.guided is not None:
        raise RequestError("guided output needs a tokenizer, and this engine has none")


def bad_word_ids(params: SamplingParams, codec: Codec | None) -> list[tuple[int, ...]]:
    """The token sequences of the bad words: texts at the start of a text and after a space."""
    words: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        if isinstance(word, str):
            assert codec is not None  # check_params saw to it
            for text in (word, " " + word.lstrip()):
                words[tuple(codec.encode(text))] = None
        else:
            words[tuple(word)] = None
    words.pop((), None)
    return list(words)


def check_span(span: int, prompt_tokens: Sequence[int], max_tokens: int) -> None:
    """RequestError for a bidirectional span that no step can compute as a whole."""
    if not 0 <= span <= len(prompt_tokens):
        raise RequestError(f"the bidirectional span has {span} tokens; the prompt has {len(prompt_tokens)}")
    if span > max_tokens:
        raise RequestError(f"the bidirectional span has {span} tokens; it must fit into a step of {max_tokens} tokens")


def _token_id(position: int, value: object) -> int:
    if isinstance(value, bool):
        raise RequestError(f"prompt token {position} is {value}; it must be an integer")
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"prompt token {position} is {value!r:.40}; it must be an integer") from None
