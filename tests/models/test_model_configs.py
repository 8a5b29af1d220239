"""config.json into a model's configuration: aliases, defaults, and a clear error for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from model_folders import ARCHITECTURES, tiny_config

from dashinfer_lite import model_defs
from dashinfer_lite.errors import ModelError
from dashinfer_lite.model_defs import find_model


def config_of(family: str, **changes: Any) -> Any:
    return find_model(ARCHITECTURES[family]).config.from_dict(tiny_config(family, **changes), "folder/config.json")


def test_every_listed_architecture_has_its_definition() -> None:
    assert set(ARCHITECTURES.values()) <= set(model_defs.ARCHITECTURES)
    for architecture in model_defs.ARCHITECTURES:
        model = find_model(architecture)
        assert callable(model.forward) and model.forward.__doc__ and model.config.__doc__


@pytest.mark.parametrize("name", ["os", "LlamaForCausalLM ", "../llama", "GPT2LMHeadModel", ""])
def test_an_unknown_architecture_is_an_error_and_never_an_import(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_defs, "import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(ModelError, match=r"not supported: missing is a definition .*; there are LlamaForCausalLM, "):
        find_model(name)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("Qwen2VLForConditionalGeneration", {"vision_config": {}}, ("forward pass", "Qwen2ForCausalLM")),
        ("Qwen2VLForConditionalGeneration", {"vision_config": {"depth": 2}}, ("a vision tower", "Qwen2ForCausalLM")),
        ("Qwen2AudioForConditionalGeneration", {"audio_config": {"d": 2}}, ("an audio tower", "Qwen2ForCausalLM")),
        ("Glm4MoeForCausalLM", {"n_routed_experts": 64}, ("its mixture of experts", "Glm4ForCausalLM")),
        ("Phi4FlashForCausalLM", {}, ("forward pass", "Phi3ForCausalLM")),
    ],
)
def test_an_unsupported_model_is_told_what_is_missing_and_what_is_near(
    name: str, config: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(name, config)
    text, _, _ = str(caught.value).partition("; there are")
    assert text.startswith(f"architecture '{name}'")
    for word in words:
        assert word in text


def test_an_older_model_of_the_same_name_is_known_by_its_keys() -> None:
    assert find_model("ChatGLMModel", {"inner_hidden_size": 64}).config.family == "chatglm1"
    assert find_model("ChatGLMModel", {"ffn_hidden_size": 64}).config.family == "chatglm"


def test_defaults_of_absent_keys() -> None:
    absent = dict.fromkeys(("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"))
    c = config_of("llama", **absent)
    assert (c.num_key_value_heads, c.head_dim, c.hidden_act) == (4, 12, "silu")
    assert (c.attention_bias, c.mlp_bias, c.tie_word_embeddings) == (False, False, False)
    assert c.rope["rope_theta"] == 10000.0


def test_windows_by_layer() -> None:
    assert config_of("mistral", sliding_window=9).window(1) == 9
    assert config_of("mistral").window(0) is None
    qwen = config_of("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1)
    assert [qwen.window(layer) for layer in range(2)] == [None, 9]
    assert config_of("qwen2", use_sliding_window=False, sliding_window=9).window(1) is None


def test_mistral_has_no_biases_whatever_the_file_says() -> None:
    assert config_of("mistral", attention_bias=True).attention_bias is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads|num_key_value_heads"),
        ({"head_dim": 258}, "head_dim is 258"),
        ({"head_dim": 9}, "even"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_file(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        config_of("llama", **changes)
    assert "folder/config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("qwen3_moe", {"num_experts": None}, "lacks num_experts"),
        ("qwen3_moe", {"num_experts": 100_000}, "num_experts is 100000"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, expected an integer from 1 to 6"),
        ("qwen3_moe", {"moe_intermediate_size": None}, "lacks moe_intermediate_size"),
        ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob is 1"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ("qwen3_moe", {"mlp_only_layers": [1, -1]}, "mlp_only_layers"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers is 1, expected a list of integers"),
        ("qwen2_moe", {"shared_expert_intermediate_size": "5"}, "shared_expert_intermediate_size"),
        ("qwen2_moe", {"qkv_bias": 0}, "qkv_bias is 0"),
        ("mixtral", {"num_local_experts": 1}, "num_experts_per_tok is 2, expected an integer from 1 to 1"),
    ],
    ids=str,
)
def test_wrong_experts(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        config_of(family, **changes)


def test_layers_of_experts() -> None:
    sparse = config_of("qwen2_moe", decoder_sparse_step=2, mlp_only_layers=[3], num_hidden_layers=8)
    assert [layer for layer in range(8) if sparse.has_experts(layer)] == [1, 5, 7]
    assert not config_of("qwen3_moe", num_experts=0).has_experts(0)
    assert config_of("qwen3_moe", num_experts=None, num_local_experts=6).num_experts == 6


def test_a_missing_rope_entry_of_a_layer_type_is_an_error() -> None:
    ropes = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    c = config_of("qwen3", rope_parameters=ropes)
    with pytest.raises(ModelError, match="no entry for full_attention"):
        c.rope_of(0)
