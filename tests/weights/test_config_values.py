"""Getters of config.json values: what they accept, what they refuse, and how they say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.config_values import (
    attention_heads,
    boolean,
    choice,
    layer_types,
    natural_int,
    positive_float,
    positive_int,
    sliding_window,
)
from dashinfer_lite.weights.rope_config import rope_parameters

GOLDEN = Path(__file__).parent.parent / "golden"
FULL, SLIDING = "full_attention", "sliding_attention"


def test_integers() -> None:
    value: Any
    assert positive_int({"n": 5}, "n") == 5
    assert positive_int({"n": None}, "n", 7) == 7
    assert positive_int({"n": 5}, "n", maximum=5) == 5
    assert natural_int({"n": 0}, "n") == 0
    for value in (0, -1, 6, 10**9, 2.0, "5", True, [5], {}, float("nan")):
        with pytest.raises(ModelError, match=r"^config\.json: n is .*, expected an integer from 1 to 5$"):
            positive_int({"n": value}, "n", maximum=5)
    with pytest.raises(ModelError, match=r"^here: lacks n$"):
        positive_int({}, "n", where="here")
    with pytest.raises(ModelError, match="from 0 to"):
        natural_int({"n": -1}, "n")


def test_other_values() -> None:
    value: Any
    assert positive_float({"x": 1}, "x") == 1.0 and type(positive_float({"x": 1}, "x")) is float
    assert positive_float({}, "x", 1e-6) == 1e-6
    for value in (0, -1.5, float("nan"), float("inf"), "1e-5", True, []):
        with pytest.raises(ModelError, match="a finite number above 0"):
            positive_float({"x": value}, "x")
    assert boolean({"b": False}, "b", True) is False
    assert boolean({"b": None}, "b", True) is True
    for value in (0, 1, "true"):
        with pytest.raises(ModelError, match="true or false"):
            boolean({"b": value}, "b")
    assert choice({"a": "silu"}, "a", ("silu", "gelu")) == "silu"
    for value in ("relu", 5, None, ["silu"]):
        with pytest.raises(ModelError, match=r"silu, gelu|lacks a"):
            choice({"a": value}, "a", ("silu", "gelu"))


def test_messages_stay_short() -> None:
    with pytest.raises(ModelError) as caught:
        positive_int({"n": "x" * 10_000}, "n")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_attention_heads": 4, "hidden_size": 64}, (4, 4, 16)),
        ({"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "head_dim": None}, (4, 2, 16)),
        ({"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 100, "head_dim": 128}, (3, 1, 128)),
        ({"num_attention_heads": 1, "head_dim": 256}, (1, 1, 256)),
        ({"num_attention_heads": 1, "head_dim": 8}, (1, 1, 8)),
    ],
)
def test_attention_heads(config: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert attention_heads(config) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, "lacks num_attention_heads"),
        ({"num_attention_heads": 10**9, "hidden_size": 64}, "num_attention_heads is 1000000000"),
        ({"num_attention_heads": 4}, "lacks hidden_size"),
        ({"num_attention_heads": 4, "hidden_size": 0}, "hidden_size is 0"),
        ({"num_attention_heads": 4, "hidden_size": -64}, "hidden_size is -64"),
        ({"num_attention_heads": 4, "hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_attention_heads": 3, "hidden_size": 64}, "a multiple of num_attention_heads"),
        ({"num_attention_heads": 4, "hidden_size": 60}, "an even number from 8 to 256"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3, "hidden_size": 64}, "a divisor of num_attention_heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 8, "hidden_size": 64}, "a divisor of num_attention_heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 0, "hidden_size": 64}, "num_key_value_heads is 0"),
        ({"num_attention_heads": 4, "head_dim": 15}, "head_dim is 15"),
        ({"num_attention_heads": 4, "head_dim": 258}, "head_dim is 258"),
        ({"num_attention_heads": 4, "head_dim": 6}, "head_dim is 6"),
        ({"num_attention_heads": 4, "head_dim": 0}, "head_dim is 0"),
    ],
)
def test_wrong_attention_heads(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        attention_heads(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, [FULL] * 4),
        ({"model_type": "llama", "sliding_window": 8}, [FULL] * 4),
        ({"model_type": "mistral", "sliding_window": 24}, [SLIDING] * 4),
        ({"model_type": "mistral", "sliding_window": None}, [FULL] * 4),
        ({"model_type": "mistral"}, [SLIDING] * 4),
        ({"model_type": "mixtral"}, [FULL] * 4),
        ({"model_type": "mixtral", "sliding_window": 24}, [SLIDING] * 4),
        ({"model_type": "qwen3_moe", "use_sliding_window": True, "max_window_layers": 3}, [FULL] * 3 + [SLIDING]),
        ({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 2}, [FULL] * 4),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2}, [FULL] * 4),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            [FULL] * 3 + [SLIDING],
        ),
        ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 0}, [SLIDING] * 4),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}, [FULL] * 4),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": [SLIDING, FULL, FULL, SLIDING]},
            [SLIDING, FULL, FULL, SLIDING],
        ),
        ({"model_type": "llama", "layer_types": [FULL] * 4}, [FULL] * 4),
    ],
)
def test_layer_types(config: dict[str, Any], expected: list[str]) -> None:
    assert layer_types({"num_hidden_layers": 4, **config}) == tuple(expected)


def test_the_family_may_be_named() -> None:
    config = {"num_hidden_layers": 2, "sliding_window": 8}
    assert layer_types(config, "mistral") == (SLIDING, SLIDING)
    assert layer_types(config, "llama") == (FULL, FULL)
    with pytest.raises(ModelError, match="model_type is null"):
        layer_types(config)


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": [FULL]},
        {"layer_types": FULL},
        {"layer_types": [FULL, "linear_attention"]},
        {"layer_types": [FULL, ["x"]]},
        {"layer_types": [FULL, SLIDING]},
        {"sliding_window": 0, "use_sliding_window": True},
        {"sliding_window": "8", "use_sliding_window": True},
        {"use_sliding_window": "yes"},
        {"use_sliding_window": True, "max_window_layers": -1},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**9},
    ],
)
def test_wrong_layer_types(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: "):
        layer_types({"num_hidden_layers": 2, "model_type": "qwen3", **config})


def test_windows() -> None:
    assert sliding_window({"model_type": "mistral"}) == 4096
    assert sliding_window({"model_type": "mistral", "sliding_window": 24}) == 24
    assert sliding_window({"model_type": "qwen2", "sliding_window": 24}) is None
    assert sliding_window({"model_type": "qwen2", "sliding_window": 24, "use_sliding_window": True}) == 24
    assert sliding_window({"model_type": "other", "sliding_window": None}) is None


@settings(deadline=None, print_blob=True)
@given(data=st.data())
def test_any_value_under_any_key_is_a_value_or_a_model_error(data: st.DataObject) -> None:
    config = json.loads(
        (GOLDEN / data.draw(st.sampled_from(["mistral", "llama3_2", "qwen2_5"])) / "config.json").read_text()
    )
    odd: Any = st.sampled_from(
        [None, 0, -1, 1, 2**63, 0.5, 1e-320, 1e308, True, False, "", "x", [], {}, [1], {"a": {}}]
    )
    places = [config] + [value for value in config.values() if isinstance(value, dict)]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from([*place, "layer_types", "rope_parameters"]))] = data.draw(odd)
    for function in (attention_heads, layer_types, sliding_window, rope_parameters):
        try:
            function(config)
        except ModelError as error:
            assert "config.json" in str(error)
