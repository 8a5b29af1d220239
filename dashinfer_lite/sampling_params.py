"""How the tokens of a request are drawn, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import index
from typing import Any, Final

from dashinfer_lite.errors import RequestError
from dashinfer_lite.guided import Guided

MAX_TOKEN_ID: Final = 2**31 - 1
MAX_SEED: Final = 2**64 - 1
MAX_SAMPLES: Final = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling parameters of one request, checked when they are made: RequestError names what is wrong.

    n                             how many answers; they share the prompt
    temperature                   0: always the most likely token; under 0.001 counts as 0
    top_k                         draw among the k most likely tokens; 0 or -1: all
    top_p                         draw among the fewest tokens whose probabilities sum up to top_p
    min_p                         draw among tokens at least min_p times as likely as the most likely one
    repetition_penalty            above 1: tokens of prompt and answer become less likely (logit divided by it,
                                  or multiplied where it is negative)
    presence_penalty              subtracted from the logit of every token that the answer holds
    frequency_penalty             subtracted once for each time the answer holds the token
    no_repeat_ngram_size          no run of so many tokens occurs twice in prompt and answer; 0: off
    logit_bias                    token id -> added to its logit, -100 to 100
    bad_words                     texts, or lists of token ids, that the answer never holds
    min_tokens                    the answer has at least so many tokens before it may stop
    max_tokens                    and at most so many; None: until the context is full
    stop                          texts that end the answer; never part of it unless include_stop_str_in_output
    stop_token_ids                token ids that end the answer
    ignore_eos                    the model's end-of-text tokens do not end the answer
    include_stop_str_in_output    the text that ended the answer is part of it
    skip_special_tokens           special tokens leave no trace in the text
    seed                          0 to 2**64 - 1; the same seed gives the same answer in any company; None: one is drawn
    logprobs                      report the log probability of each token, and of so many most likely ones
    prompt_logprobs               the same for the tokens of the prompt
    guided                        what the answer must look like: a Guided, or a dict of its one field

    Log probabilities are those of the raw distribution, before temperature, penalties and masks.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str | Sequence[int]] = ()
    min_tokens: int = 0
    max_tokens: int | None = 16
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    guided: Guided | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name, lowest, highest in _INTEGERS:
            set_field(self, name, _integer(name, getattr(self, name), lowest, highest))
        for name, lowest, highest in _OPTIONAL_INTEGERS:
            if getattr(self, name) is not None:
                set_field(self, name, _integer(name, getattr(self, name), lowest, highest))
        for name, low, high, open_low in _NUMBERS:
            set_field(self, name, _number(name, getattr(self, name), low, high, open_low))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "True or False")
        set_field(self, "stop", _texts("stop", self.stop))
        set_field(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        set_field(self, "bad_words", _bad_words(self.bad_words))
        set_field(self, "logit_bias", _logit_bias(self.logit_bias))
        set_field(self, "guided", _guided(self.guided))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _bad("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Make parameters of plain values; RequestError for a name that is no parameter."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise RequestError(f"{name!r} is not a sampling parameter; there are {', '.join(known)}")
        return cls(**values)


_LARGE: Final = 2**31 - 1
_INTEGERS: Final = (
    ("n", 1, MAX_SAMPLES),
    ("top_k", -1, _LARGE),
    ("no_repeat_ngram_size", 0, _LARGE),
    ("min_tokens", 0, _LARGE),
)
_OPTIONAL_INTEGERS: Final = (
    ("max_tokens", 1, _LARGE),
    ("seed", 0, MAX_SEED),
    ("logprobs", 0, _LARGE),
    ("prompt_logprobs", 0, _LARGE),
)
_NUMBERS: Final = (  # name, lowest, highest, whether the lowest value itself is excluded
    ("temperature", 0.0, 100.0, False),
    ("top_p", 0.0, 1.0, True),
    ("min_p", 0.0, 1.0, False),
    ("repetition_penalty", 0.0, 100.0, True),
    ("presence_penalty", -100.0, 100.0, False),
    ("frequency_penalty", -100.0, 100.0, False),
)
_SWITCHES: Final = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")


def _integer(name: str, value: object, low: int, high: int) -> int:
    expected = f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise _bad(name, value, expected)
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _bad(name, value, expected) from None
    if not low <= number <= high:
        raise _bad(name, value, expected)
    return number


def _number(name: str, value: object, low: float, high: float, open_low: bool) -> float:
    expected = (
        f"a finite number {'above' if open_low else 'from'} {low:g} {'and at most' if open_low else 'to'} {high:g}"
    )
    if isinstance(value, (bool, str, bytes)):
        raise _bad(name, value, expected)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise _bad(name, value, expected) from None
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        raise _bad(name, value, expected)
    return number


def _items(name: str, value: object, expected: str) -> list[object]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _bad(name, value, expected)
    return list(value)


def _texts(name: str, value: object) -> tuple[str, ...]:
    expected = "a string or a list of strings, none of them empty"
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else _items(name, value, expected)
    if not all(isinstance(text, str) and text for text in texts):
        raise _bad(name, value, expected)
    return tuple(str(text) for text in texts)


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(_integer(name, token, 0, MAX_TOKEN_ID) for token in _items(name, value, "a list of token ids"))


def _bad_words(value: object) -> tuple[str | tuple[int, ...], ...]:
    expected = "a list of non-empty strings or non-empty lists of token ids"
    if value is None:
        return ()
    words: list[str | tuple[int, ...]] = []
    for item in _items("bad_words", value, expected):
        word = item if isinstance(item, str) else _token_ids("bad_words", item)
        if not word:
            raise _bad("bad_words", value, expected)
        words.append(word)
    return tuple(words)


def _logit_bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _bad("logit_bias", value, "a dict of token id -> number from -100 to 100")
    return {
        _integer("logit_bias", token, 0, MAX_TOKEN_ID): _number("logit_bias", bias, -100.0, 100.0, False)
        for token, bias in value.items()
    }


def _guided(value: object) -> Guided | None:
    if value is None or isinstance(value, Guided):
        return value
    if not isinstance(value, Mapping):
        raise _bad("guided", value, "a Guided, or a dict of its one field")
    return Guided.from_dict(value)


def _bad(name: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{name} is {value!r:.80}; it must be {expected}")
