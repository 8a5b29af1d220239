"""rope_parameters over both generations of config.json, and the values it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights.rope_config import rope_parameters

GOLDEN = Path(__file__).parent.parent / "golden"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
LENGTH = {"max_position_embeddings": 4096}

# One entry a scaling: what both generations give, and what it becomes beside the theta and the partial factor.
SCALINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rope_type": "default"}, {}),
    ({"rope_type": "linear", "factor": 2}, {"factor": 2.0}),
    ({"rope_type": "dynamic", "factor": 4.0}, {"factor": 4.0, "max_position_embeddings": 4096}),
    ({"rope_type": "llama3", **LLAMA3}, LLAMA3),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        {
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
            "attention_factor": None,
            "mscale": None,
            "mscale_all_dim": None,
        },
    ),
    (
        {"rope_type": "yarn", "factor": 2, "beta_fast": 16, "truncate": False, "mscale": 1, "mscale_all_dim": 0.5},
        {
            "factor": 2.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16.0,
            "beta_slow": 1.0,
            "truncate": False,
            "attention_factor": None,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
        },
    ),
    (
        {
            "rope_type": "longrope",
            "short_factor": [1, 2],
            "long_factor": [3, 4],
            "original_max_position_embeddings": 1024,
        },
        {
            "factor": 4.0,
            "short_factor": [1.0, 2.0],
            "long_factor": [3.0, 4.0],
            "original_max_position_embeddings": 1024,
            "attention_factor": None,
        },
    ),
]


@pytest.mark.parametrize(("given", "expected"), SCALINGS)
def test_both_generations_give_the_same(given: dict[str, Any], expected: dict[str, Any]) -> None:
    expected = {"rope_type": given["rope_type"], "rope_theta": 5e5, "partial_rotary_factor": 0.5, **expected}
    older = {key if key != "rope_type" else "type": value for key, value in given.items()}
    for config in (
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": given},
        {"rope_theta": 500000, "partial_rotary_factor": 0.5, "rope_scaling": older},
        {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, **given}},
        {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, **given}, "rope_theta": 3.0},
        {"rope_parameters": given, "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ):
        assert rope_parameters(LENGTH | config) == expected


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_scaling": None},
        {"rope_parameters": None},
        {"rope_scaling": {}},
        {"rope_parameters": {}},
        {"rope_scaling": {"rope_type": None, "type": "default"}},
    ],
)
def test_defaults(config: dict[str, Any]) -> None:
    assert rope_parameters(config) == PLAIN
    assert rope_parameters(config, default_theta=1e6) == PLAIN | {"rope_theta": 1e6}


def test_golden_folders() -> None:
    read = {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in ("llama3_2", "qwen3")}
    assert rope_parameters(read["llama3_2"]) == {**PLAIN, "rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}
    assert rope_parameters(read["qwen3"]) == {**PLAIN, "rope_theta": 1e6}


def test_one_object_a_layer_type_stays_nested() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default"},
    }
    assert rope_parameters({"rope_parameters": nested}) == {
        "full_attention": {**PLAIN, "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": PLAIN,
    }
    with pytest.raises(ModelError, match=r"full_attention: rope_type is 'x'"):
        rope_parameters({"rope_parameters": {"full_attention": {"rope_type": "x"}}})


def test_mrope_is_the_plain_rotation_with_sections() -> None:
    given = {"type": "mrope", "mrope_section": [2, 3, 3]}
    expected = {**PLAIN, "mrope_section": [2, 3, 3], "mrope_interleaved": False}
    assert rope_parameters({"rope_scaling": given}) == expected
    for section in ([1, 2], "123", [1, 2, -3], [1, 2, 3.0]):
        with pytest.raises(ModelError, match="mrope_section"):
            rope_parameters({"rope_scaling": given | {"mrope_section": section}})


def test_the_original_length_may_stand_beside_the_scaling() -> None:
    scaling = {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}
    rope = rope_parameters(LENGTH | {"original_max_position_embeddings": 2048, "rope_scaling": scaling})
    assert (rope["rope_type"], rope["original_max_position_embeddings"], rope["factor"]) == ("longrope", 2048, 2.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_theta": 0}, "config.json: rope_theta is 0"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"partial_rotary_factor": 1.5}, "at most 1"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
        ({"rope_parameters": [1]}, "rope_parameters is"),
        ({"rope_scaling": {"type": "unknown"}}, "rope_type is 'unknown', expected one of default, linear"),
        ({"rope_scaling": {"type": 5}}, "rope_type is 5"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_type is"),
        ({"rope_scaling": {"type": "linear"}}, "config.json rope_scaling: lacks factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": None}, "max_position_embed"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "above 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}}, "beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": -1}}, "attention_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}}, "original_max"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor is not below"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "long_factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2]}}, "differ in length"),
        ({"rope_scaling": {"type": "longrope", "short_factor": ["1"], "long_factor": [1.0]}}, r"short_factor\[0\]"),
    ],
)
def test_wrong_parameters(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rope_parameters(LENGTH | config)
