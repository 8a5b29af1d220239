"""config.json of the families with keys of their own: both generations, defaults, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.model_defs import find_model

FOLDERS = ("qwen_v1", "chatglm1", "chatglm2", "glm", "baichuan_7b", "baichuan_13b", "gemma2", "phi3")


@pytest.fixture
def published(golden: Path) -> dict[str, dict[str, Any]]:
    """The golden folders' config.json."""
    return {name: json.loads((golden / name / "config.json").read_text()) for name in FOLDERS}


def config_of(config: dict[str, Any], **changes: Any) -> Any:
    """The checked configuration; a change to ... takes the key out."""
    changed = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    return find_model(changed["architectures"][0], changed).config.from_dict(changed, "folder/config.json")


def test_both_generations_of_qwen_s_keys(published: dict[str, dict[str, Any]]) -> None:
    old = published["qwen_v1"]
    names = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "ffn_hidden_size": "intermediate_size",
    }
    new = {names.get(key, key): value for key, value in old.items() if key != "padded_vocab_size"}
    assert config_of(old) == config_of(new)
    assert config_of(old).intermediate_size == 96
    assert config_of(old, padded_vocab_size=640).embedding_rows == 640


def test_chatglm_s_defaults(published: dict[str, dict[str, Any]]) -> None:
    c = config_of(published["chatglm2"], kv_channels=..., multi_query_attention=False, rope_ratio=50)
    assert (c.head_dim, c.num_key_value_heads, c.rope["rope_theta"]) == (16, 4, 500000.0)
    assert config_of(published["chatglm2"]).num_key_value_heads == 2


def test_baichuan_s_positions_and_head(published: dict[str, dict[str, Any]]) -> None:
    first, large = published["baichuan_7b"], published["baichuan_13b"]
    assert config_of(first).rotary and not config_of(large).rotary
    assert config_of(large, architectures=["BaiChuanForCausalLM"]).rotary
    assert config_of(large, hidden_size=4096, num_attention_heads=32).rotary
    assert config_of(large).max_position_embeddings == 256
    assert not config_of(large).normalize_lm_head
    assert config_of(large, vocab_size=125696).normalize_lm_head
    assert not config_of(large, vocab_size=125696, normalize_lm_head=False).normalize_lm_head


def test_gemma_s_caps_windows_and_rotations(published: dict[str, dict[str, Any]]) -> None:
    second = published["gemma2"]
    c = config_of(second, attn_logit_softcapping=..., final_logit_softcapping=None, tie_word_embeddings=...)
    assert (c.attn_logit_softcapping, c.final_logit_softcapping, c.tie_word_embeddings) == (50.0, 0.0, True)
    assert [c.window(layer) for layer in range(2)] == [16, None]
    third = {**second, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7, "rope_theta": 1e6}
    c = config_of(third, attn_logit_softcapping=..., final_logit_softcapping=...)
    assert (c.attn_logit_softcapping, c.final_logit_softcapping) == (0.0, 0.0)
    assert [c.window(layer) for layer in range(7)] == [16, 16, 16, 16, 16, None, 16]
    assert [c.rope_of(layer)["rope_theta"] for layer in (0, 5)] == [10000.0, 1e6]
    assert config_of(third, sliding_window_pattern=2).window(1) is None


def test_the_embedding_s_scale_is_rounded_as_the_model_s_type() -> None:
    assert [Graph(dtype).rounded(2304**0.5) for dtype in ("f32", "f16", "bf16")] == [48.0] * 3
    assert Graph("bf16").rounded(1152**0.5) == 34.0
    assert Graph("f16").rounded(1152**0.5) == 33.9375
    assert Graph("f32").rounded(1152**0.5) == float(np.float32(1152**0.5))


@pytest.mark.parametrize(
    ("folder", "changes", "words"),
    [
        ("qwen_v1", {"n_embd": 0}, "n_embd is 0"),
        ("qwen_v1", {"kv_channels": 64}, "kv_channels is 64, expected n_embd / n_head"),
        ("qwen_v1", {"ffn_hidden_size": 191}, "ffn_hidden_size is odd"),
        ("qwen_v1", {"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ("qwen_v1", {"visual": {"layers": 2}}, "'visual' part"),
        ("qwen_v1", {"use_logn_attn": "yes"}, "use_logn_attn"),
        ("chatglm2", {"num_layers": ...}, "lacks num_layers"),
        ("chatglm2", {"multi_query_group_num": 3}, "multi_query_group_num is 3, expected a divisor"),
        ("chatglm2", {"kv_channels": 7}, "kv_channels is 7"),
        ("chatglm2", {"rope_ratio": -1}, "rope_ratio is -1"),
        ("chatglm1", {"hidden_size": 40}, "heads have 10 columns"),
        ("chatglm1", {"position_encoding_2d": False}, "position_encoding_2d"),
        ("chatglm1", {"pre_seq_len": 128}, "pre_seq_len"),
        ("baichuan_13b", {"model_max_length": "long"}, "model_max_length is 'long'"),
        ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("glm", {"attention_bias": 1}, "attention_bias"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_file(
    published: dict[str, dict[str, Any]], folder: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        config_of(published[folder], **changes)
    assert "folder/config.json" in str(caught.value)
