"""ModelFolder on sound, strange and hostile folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights import ModelFolder

GOLDEN = Path(__file__).parent.parent / "golden"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def write(folder: Path, config: Any, generation: Any = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("name", "architecture", "eos", "bos"),
    [
        ("llama2", "LlamaForCausalLM", (2,), 1),
        ("llama3_2", "LlamaForCausalLM", (384,), 380),
        ("mistral", "MistralForCausalLM", (2,), 1),
        ("qwen1_5", "Qwen2ForCausalLM", (382,), None),
        ("qwen2_5", "Qwen2ForCausalLM", (382,), None),
        ("qwen3", "Qwen3ForCausalLM", (382,), None),
    ],
)
def test_golden_folders(name: str, architecture: str, eos: tuple[int, ...], bos: int | None) -> None:
    folder = ModelFolder(GOLDEN / name)
    assert (folder.architecture, folder.dtype, folder.eos_token_ids, folder.bos_token_id) == (
        architecture,
        "bf16",
        eos,
        bos,
    )
    assert folder.generation["do_sample"] is False
    with folder.open_weights() as weights:
        assert "model.embed_tokens.weight" in weights.names()
        assert folder.stored_dtype(weights) == "bf16"


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "torch.float16"}, "f16"),
        ({"dtype": "float32"}, "f32"),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "f16"),
        ({"dtype": None, "torch_dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "auto"}, None),
        ({}, None),
    ],
)
def test_dtype_of_both_generations(tmp_path: Path, config: dict[str, Any], dtype: str | None) -> None:
    assert ModelFolder(write(tmp_path, LLAMA | config)).dtype == dtype


def test_undeclared_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    stored: dict[str, np.ndarray] = {
        "norm": np.zeros(30, np.float32),
        "w": np.zeros((10, 10), np.float16),
        "ids": np.zeros(900, np.int64),
    }
    save_file(stored, tmp_path / "model.safetensors")
    folder = ModelFolder(write(tmp_path, LLAMA))
    with folder.open_weights() as weights:
        assert folder.stored_dtype(weights) == "f16"
    save_file({"ids": stored["ids"]}, tmp_path / "model.safetensors")
    with folder.open_weights() as weights, pytest.raises(ModelError, match="torch_dtype"):
        folder.stored_dtype(weights)


def test_architecture_from_the_model_type(tmp_path: Path) -> None:
    assert ModelFolder(write(tmp_path, {"model_type": "qwen3"})).architecture == "Qwen3ForCausalLM"
    assert (
        ModelFolder(write(tmp_path, {"architectures": None, "model_type": "llama"})).architecture
        == LLAMA["architectures"][0]
    )
    for config in ({}, {"model_type": "unheard_of"}, {"model_type": 5}, {"architectures": "LlamaForCausalLM"}):
        with pytest.raises(ModelError, match=r"config\.json: (model_type|architectures) is"):
            ModelFolder(write(tmp_path, config))


def test_end_tokens(tmp_path: Path) -> None:
    assert ModelFolder(write(tmp_path, LLAMA)).eos_token_ids == ()
    assert ModelFolder(write(tmp_path, LLAMA | {"eos_token_id": 2})).eos_token_ids == (2,)
    assert ModelFolder(write(tmp_path, LLAMA | {"eos_token_id": [9, 2, 9]})).eos_token_ids == (9, 2)
    config = LLAMA | {"eos_token_id": 2, "bos_token_id": 1}
    folder = ModelFolder(write(tmp_path, config, {"eos_token_id": [5, 6], "bos_token_id": None}))
    assert (folder.eos_token_ids, folder.bos_token_id) == ((5, 6), 1)
    assert ModelFolder(write(tmp_path, config, {})).eos_token_ids == (2,)


@pytest.mark.parametrize("value", [-1, True, 2.0, "2", [None], [1, [2]], 2**31, {}])
def test_wrong_end_tokens(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match=r"/generation_config\.json: eos_token_id is"):
        ModelFolder(write(tmp_path, LLAMA, {"eos_token_id": value}))
    with pytest.raises(ModelError, match=r"/config\.json: eos_token_id is"):
        ModelFolder(write(tmp_path, LLAMA | {"eos_token_id": value}, {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\udc80"}', "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e400}', "does not fit a double"),
        (b'{"a": 18446744073709551616}', "does not fit 64 bits"),
        (b'{"a": ' + b"7" * 3_000_000 + b"}", "does not fit 64 bits"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b"[" * 1_000_000, "nested deeper"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_hostile_json(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ModelError, match=message) as caught:
        ModelFolder(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and len(str(caught.value)) < 1000


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    os.truncate(tmp_path / "config.json", 200_000_000)
    with pytest.raises(ModelError, match="expected at most"):
        ModelFolder(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, message in {
        "missing": "no such folder",
        "file": "is a file",
        "loop": "not a folder that can be read",
        "nul\0byte": "not a folder that can be read",
        "x" * 300: "not a folder that can be read",
        ".": r"holds no config\.json",
    }.items():
        with pytest.raises(ModelError, match=message):
            ModelFolder(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_configs_that_are_no_files(tmp_path: Path, name: str) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(name)
    with pytest.raises(ModelError, match="loop of symbolic links"):
        ModelFolder(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="not a regular file"):
        ModelFolder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "config.json").chmod(0)
    with pytest.raises(ModelError, match="may not be read"):
        ModelFolder(tmp_path)


@settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_configs(tmp_path: Path, data: st.DataObject) -> None:
    text = bytearray((GOLDEN / "llama3_2" / "config.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "config.json").write_bytes(text)
    try:
        ModelFolder(tmp_path)
    except ModelError as error:
        assert str(tmp_path) in str(error)
