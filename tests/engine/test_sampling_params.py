"""Every sampling parameter is checked for type, range and finiteness, and the error names it."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from dashinfer_lite.errors import RequestError
from dashinfer_lite.sampling_params import SamplingParams

INTEGERS = {
    "n": (1, 1024),
    "top_k": (-1, None),
    "no_repeat_ngram_size": (0, None),
    "min_tokens": (0, 16),
    "max_tokens": (1, None),
}
INTEGERS |= {"seed": (0, 2**64 - 1), "logprobs": (0, None), "prompt_logprobs": (0, None)}
NUMBERS = {"temperature": (0, 100), "top_p": (1e-9, 1), "min_p": (0, 1), "repetition_penalty": (1e-9, 100)}
NUMBERS |= {"presence_penalty": (-100, 100), "frequency_penalty": (-100, 100)}
OPTIONAL = {"max_tokens", "seed", "logprobs", "prompt_logprobs"}
SWITCHES = {"ignore_eos", "include_stop_str_in_output", "skip_special_tokens"}


def test_every_field_is_in_a_table() -> None:
    names = {field.name for field in fields(SamplingParams)}
    assert names == {*INTEGERS, *NUMBERS, *SWITCHES, "logit_bias", "bad_words", "stop", "stop_token_ids", "guided"}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name: str) -> None:
    low, high = INTEGERS[name]
    for good in (low, low + 1, np.int64(low), high):
        if good is not None:
            value = getattr(SamplingParams(**{name: good}), name)
            assert value == good and type(value) is int
    bad = [low - 1, True, 1.0, "1", [1], math.nan, np.float32(1), np.True_]
    bad += [high + 1] if high is not None else [2**31]
    bad += [] if name in OPTIONAL else [None]
    for value in bad:
        with pytest.raises(RequestError, match=f"^{name} is "):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    low, high = NUMBERS[name]
    for good in (low, high, 1, np.float32(0.5)):
        assert type(getattr(SamplingParams(**{name: good}), name)) is float
    for value in (low - 0.001, high + 0.001, math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], 10**400):
        with pytest.raises(RequestError, match=f"^{name} is .*; it must be a finite number"):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name: str) -> None:
    for value in (1, 0, None, "yes"):
        with pytest.raises(RequestError, match=f"^{name} is .*True or False"):
            SamplingParams(**{name: value})


WRONG: dict[str, list[object]] = {
    "stop": [[""], "", 5, ["a", 5], b"a"],
    "stop_token_ids": [[-1], [True], [2**31], "12", 5],
    "bad_words": ["word", [""], [[]], [[-1]], [5], [[1.5]]],
    "logit_bias": [{-1: 0}, {"1": 0}, {1: math.nan}, {1: math.inf}, {1: 100.5}, {True: 1}, [1], {1: None}],
    "min_tokens": [17],
    "guided": ["[a-z]", True, ["a"], 5],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(RequestError, match=f"^{name} is "):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_lists_are_kept_as_tuples() -> None:
    """What the caller changes later changes nothing here."""
    stop, bias = ["a"], {1: 2}
    params = SamplingParams(stop=stop, logit_bias=bias, bad_words=["x", [1, 2]], stop_token_ids=np.array([4, 5]))
    stop.append("b")
    bias[3] = 4
    assert (params.stop, params.logit_bias, params.bad_words) == (("a",), {1: 2.0}, ("x", (1, 2)))
    assert params.stop_token_ids == (4, 5)
    assert SamplingParams(stop="a").stop == ("a",)
    assert SamplingParams(stop=None, bad_words=None, stop_token_ids=None) == SamplingParams()  # type: ignore[arg-type]
    assert replace(params, max_tokens=None).stop == ("a",)


def test_from_dict() -> None:
    assert SamplingParams.from_dict({"top_k": 5, "stop": ["a"]}) == SamplingParams(top_k=5, stop=["a"])
    with pytest.raises(RequestError, match="'topk' is not a sampling parameter; there are n, temperature"):
        SamplingParams.from_dict({"topk": 5})
