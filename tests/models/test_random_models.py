"""Random small models of every family, and one with each option that matters: devices against the family's formulas.

Widths are no multiples of anything, head sizes go from 8 to 256; every option and rope scaling of a family turns up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from family_runs import NEW_TOKENS, CalmWeights, check_formulas, prompt_of, run
from hypothesis import given
from hypothesis import strategies as st
from one_op import examples
from random_configs import FAMILIES, WITH_EXPERTS, configs

from dashinfer_lite.devices import open_device
from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.quant import QuantPolicy

QUANTS = ("a16w8", "a16w4", "a16w4-g32", "a8w8-g64")

BAICHUAN: dict[str, Any] = {
    "architectures": ["BaichuanForCausalLM"],
    "model_type": "baichuan",
    "vocab_size": 71,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
}
QWEN: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "vocab_size": 71,
    "n_embd": 40,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "ffn_hidden_size": 74,
    "kv_channels": 20,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "no_bias": True,
}
GEMMA: dict[str, Any] = {
    "vocab_size": 71,
    "hidden_size": 30,
    "intermediate_size": 37,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 9,
    "sliding_window": 5,
    "tie_word_embeddings": True,
}
GEMMA2 = GEMMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "max_position_embeddings": 64}
GEMMA3 = GEMMA | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "max_position_embeddings": 64}
PHI = {key: value for key, value in GEMMA.items() if key != "query_pre_attn_scalar"} | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "sliding_window": None,
}
LONG = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [3.0, 5.0, 9.0], "type": "longrope"}

CASES: dict[str, dict[str, Any]] = {
    **{
        f"baichuan-alibi-{heads}": BAICHUAN
        | {"hidden_size": 10 * heads, "num_attention_heads": heads, "model_max_length": 64}
        for heads in (1, 3, 4, 6, 40)
    },
    "baichuan-norm-head": BAICHUAN
    | {"hidden_size": 30, "num_attention_heads": 3, "max_position_embeddings": 64, "normalize_lm_head": True},
    "qwen-ntk": QWEN | {"seq_length": 9, "use_dynamic_ntk": True},
    "qwen-logn": QWEN | {"seq_length": 9, "use_logn_attn": True},
    "qwen-both": QWEN | {"seq_length": 16, "use_dynamic_ntk": True, "use_logn_attn": True},
    "qwen-partial": QWEN | {"seq_length": 16, "rotary_pct": 0.5, "use_dynamic_ntk": True},
    "gemma2-caps": GEMMA2 | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 0.5},
    "gemma3-published": GEMMA3
    | {"rope_local_base_freq": 20.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e5},
    "phi3-partial": PHI | {"partial_rotary_factor": 0.5},
    "phi3-window": PHI | {"sliding_window": 5},
    "phi3-long-prompt": PHI
    | {"partial_rotary_factor": 0.5, "rope_scaling": LONG, "original_max_position_embeddings": 20},
    "phi3-long-answer": PHI
    | {"partial_rotary_factor": 0.5, "rope_scaling": LONG, "original_max_position_embeddings": 38},
}


@pytest.mark.parametrize("name", CASES)
def test_option(name: str) -> None:
    """Each in effect within the prompt or the answer, the prompt in chunks."""
    config = {"rotary_pct": 1.0, "use_dynamic_ntk": False, "use_logn_attn": False, **CASES[name]}
    check_formulas(config, prompt_of(config, 37), chunk=11)


@pytest.mark.parametrize("family", FAMILIES)
@examples(6)
@given(data=st.data())
def test_fp32(family: str, data: st.DataObject) -> None:
    config = data.draw(configs(family))
    prompt = prompt_of(config, data.draw(st.integers(1, 50)))
    check_formulas(config, prompt, data.draw(st.sampled_from([None, 1, 7])))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITH_EXPERTS])
@examples(3)
@given(data=st.data())
def test_integers_and_bf16(family: str, data: st.DataObject) -> None:
    """Every mode runs on every family, and the CPU's logits are near the reference's.

    But for routers: one that is torn between two experts may choose another one on another device.
    """
    config = data.draw(configs(family))
    prompt = prompt_of(config, data.draw(st.integers(1, 50)))
    weights, policy = CalmWeights(config), QuantPolicy.parse(data.draw(st.sampled_from(QUANTS)))
    dtype = data.draw(st.sampled_from(["f32", "bf16"]))
    device = open_device("cpu", threads=2)
    got, drawn = run(device, config, weights, prompt, dtype=dtype, quant=policy)
    device.close()
    wanted, _ = run(ReferenceDevice(), config, weights, prompt, dtype=dtype, quant=policy)
    got, wanted = got[: len(prompt)], wanted[: len(prompt)]
    assert np.abs(got - wanted).max() <= (2e-2 if dtype == "f32" else 5e-2) * np.abs(wanted).max()
    assert len(drawn) == NEW_TOKENS
