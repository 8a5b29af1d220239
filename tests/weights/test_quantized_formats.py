"""GPTQ, AWQ, FP8 and our own folders: every reader gives back the numbers that its format stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import tiny_config
from quantized_folders import awq, fp8, gptq, matrices, own, write_folder

from dashinfer_lite.errors import ModelError
from dashinfer_lite.weights import ModelFolder
from dashinfer_lite.weights.grid import Codes, Grid, dequantize
from dashinfer_lite.weights.quantized import CACHED_TENSORS, QuantizedReader, TensorCache

CONFIG = tiny_config("qwen2", hidden_size=48, intermediate_size=72, vocab_size=101, num_hidden_layers=1)

FORMATS: dict[str, Callable[[], Any]] = {
    "gptq-4": lambda: gptq(CONFIG),
    "gptq-8": lambda: gptq(CONFIG, bits=8),
    "gptq-4-v2": lambda: gptq(CONFIG, version=2),
    "gptq-4-symmetric": lambda: gptq(CONFIG, symmetric=True),
    "gptq-8-act-order": lambda: gptq(CONFIG, bits=8, act_order=True),
    "gptq-4-act-order-v2": lambda: gptq(CONFIG, act_order=True, version=2, group=24),
    "gptq-4-per-channel": lambda: gptq(CONFIG, group=-1),
    "gptq-4-per-channel-act-order": lambda: gptq(CONFIG, group=-1, act_order=True),
    "gptq-4-short-last-group": lambda: gptq(CONFIG, group=20),
    "gptq-4-short-last-group-act-order": lambda: gptq(CONFIG, group=20, act_order=True),
    "gptq-4-group-above-k": lambda: gptq(CONFIG, group=128),
    "gptq-4-no-g-idx": lambda: gptq(CONFIG, g_idx=False),
    "awq": lambda: awq(CONFIG),
    "awq-per-channel": lambda: awq(CONFIG, group=-1),
    "fp8": lambda: fp8(CONFIG),
    "fp8-large-blocks": lambda: fp8(CONFIG, block=(128, 128)),
    "own-4": lambda: own(CONFIG),
    "own-8": lambda: own(CONFIG, bits=8, group=0),
    "own-4-bf16": lambda: own(CONFIG, scale_type="bfloat16"),
    "own-8-fp16": lambda: own(CONFIG, bits=8, group=20, scale_type="float16"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_those_of_the_plain_model(tmp_path: Path, name: str) -> None:
    config, tensors, plain = FORMATS[name]()
    with ModelFolder(write_folder(tmp_path, config, tensors)).open_weights() as reader:
        assert isinstance(reader, QuantizedReader)
        assert set(reader.names()) == set(plain)
        for tensor, values in plain.items():
            info = reader.info(tensor)
            assert (info.dtype, info.shape, info.nbytes) == ("f32", values.shape, values.nbytes)
            np.testing.assert_array_equal(reader.read(tensor), values, err_msg=tensor)
            for start, stop in (
                (0, 1),
                (3, 21),
                (len(values) // 3, len(values) * 5 // 6),
                (len(values) - 5, len(values)),
                (7, 7),
            ):
                np.testing.assert_array_equal(reader.read_rows(tensor, start, stop), values[start:stop])


@pytest.mark.parametrize("name", [name for name in FORMATS if "fp8" not in name])
def test_codes_are_rows_on_the_grid(tmp_path: Path, name: str) -> None:
    """Codes have K in groups that lie together, and mean the same numbers."""
    config, tensors, plain = FORMATS[name]()
    with ModelFolder(write_folder(tmp_path, config, tensors)).open_weights() as reader:
        assert isinstance(reader, QuantizedReader)
        modules = {name.removesuffix(".weight") for name in matrices(CONFIG)}
        assert set(reader.grids) == modules | ({"lm_head"} if "own" in name else set())
        for module, grid in reader.grids.items():
            k = plain[f"{module}.weight"].shape[1]
            rows = reader.read_codes(module, 3, 19)
            assert (rows.codes.dtype, rows.scales.dtype, rows.zeros.dtype) == (np.uint8, np.float32, np.int16)
            assert rows.codes.shape == (16, k) and rows.scales.shape == rows.zeros.shape == (16, grid.groups(k))
            assert all(part.flags.c_contiguous for part in rows) and rows.codes.max() <= grid.levels
            np.testing.assert_array_equal(dequantize(rows, grid), plain[f"{module}.weight"][3:19])
        # With one group, no order of K makes a difference.
        is_sorted = "act-order" in name and "per-channel" not in name
        assert all((grid.order is not None) == is_sorted for grid in reader.grids.values())


def test_the_stored_type_does_not_come_from_packed_tensors(tmp_path: Path) -> None:
    config, tensors, _ = gptq({key: value for key, value in CONFIG.items() if key != "torch_dtype"}, g_idx=False)
    tensors = {
        name: values.astype(np.float16) if values.dtype == np.float32 else values for name, values in tensors.items()
    }
    folder = ModelFolder(write_folder(tmp_path, config, tensors))
    with folder.open_weights() as reader:
        assert folder.stored_dtype(reader) == "f16"


@pytest.mark.parametrize(
    ("file", "content", "make"),
    [
        ("quantize_config.json", '{"bits": 4, "group_size": 16, "desc_act": false}', gptq),
        ("quant_config.json", '{"w_bit": 4, "q_group_size": 16, "version": "GEMM", "zero_point": true}', awq),
    ],
)
def test_older_tools_write_a_file_of_their_own(tmp_path: Path, file: str, content: str, make: Any) -> None:
    config, tensors, plain = make(CONFIG)
    del config["quantization_config"]
    folder = write_folder(tmp_path, config, tensors)
    (folder / file).write_text(content)
    with ModelFolder(folder).open_weights() as reader:
        name = matrices(CONFIG)[0]
        np.testing.assert_array_equal(reader.read(name), plain[name])


def test_a_version_1_zero_point_of_0_wraps(tmp_path: Path) -> None:
    """0 - 1 is stored as all bits; rows of positive numbers alone have such a zero point."""
    config, tensors, _ = gptq(CONFIG, seed=5)
    module = "model.layers.0.mlp.down_proj"
    tensors[f"{module}.qzeros"][:] = -1
    with ModelFolder(write_folder(tmp_path, config, tensors)).open_weights() as reader:
        assert isinstance(reader, QuantizedReader)
        assert not reader.read_codes(module, 0, 8).zeros.any()


def change(**values: Any) -> Callable[[Any, Any], None]:
    return lambda config, tensors: config["quantization_config"].update(values)


def drop(tensor: str) -> Callable[[Any, Any], None]:
    return lambda config, tensors: tensors.pop(tensor)


def put(tensor: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, Any], None]:
    return lambda config, tensors: tensors.update({tensor: make(tensors[tensor])})


UP = "model.layers.0.mlp.up_proj"

BROKEN: list[tuple[str, Callable[[Any, Any], None], str]] = [
    ("gptq-4", change(quant_method="marlin"), "marlin.*supported are gptq, awq, fp8 and dashinfer"),
    ("gptq-4", change(quant_method=None), "quantized by null"),
    ("gptq-4", change(bits=3), "bits is 3; supported are 4 and 8"),
    ("gptq-4", change(bits="4"), "bits"),
    ("gptq-4", change(bits=8), "q_proj.qzeros.*expected i32"),
    ("gptq-4", change(group_size=0), "group_size is 0"),
    ("gptq-4", change(group_size=True), "group_size is true"),
    ("gptq-4", change(group_size=12), "qzeros.*expected i32"),
    ("gptq-4", change(checkpoint_format="marlin"), "checkpoint_format is marlin|checkpoint_format is 'marlin'"),
    ("gptq-4", drop(f"{UP}.scales"), "up_proj.scales.*is missing"),
    ("gptq-4", drop(f"{UP}.qzeros"), "up_proj.qzeros.*is missing"),
    ("gptq-4", put(f"{UP}.qweight", lambda x: x.astype(np.float32)), "up_proj.qweight.*is f32"),
    ("gptq-4", put(f"{UP}.qweight", lambda x: x[:-1]), "up_proj"),
    ("gptq-4", put(f"{UP}.scales", lambda x: x[:, :-1]), "up_proj.scales.*expected"),
    ("gptq-4", put(f"{UP}.scales", lambda x: np.full_like(x, np.inf)), "up_proj.scales.*not finite"),
    ("gptq-4", put(f"{UP}.g_idx", lambda x: x * 0), "up_proj.g_idx.*does not put 16 columns into each group"),
    ("gptq-4", put(f"{UP}.g_idx", lambda x: x - 1), "up_proj.g_idx.*does not put 16 columns into each group"),
    ("gptq-4", put(f"{UP}.g_idx", lambda x: x + 1), "up_proj.g_idx.*does not put 16 columns into each group"),
    ("gptq-4", put(f"{UP}.g_idx", lambda x: np.where(x == 0, 2**31 - 1, x)), "up_proj.g_idx.*does not put 16 columns"),
    ("gptq-4-short-last-group", put(f"{UP}.g_idx", lambda x: 2 - x), "up_proj.g_idx.*does not put 20 columns"),
    ("gptq-4", put(f"{UP}.g_idx", lambda x: x.astype(np.float32)), "up_proj.g_idx.*expected i32"),
    ("gptq-4", put(f"{UP}.g_idx", lambda x: x[:-1]), "up_proj.g_idx.*expected"),
    ("awq", change(version="gemv"), "AWQ version is .*gemv"),
    ("awq", change(bits=8), "bits is 8"),
    ("awq", put(f"{UP}.qzeros", lambda x: x[:-1]), "up_proj.qzeros"),
    ("awq", put(f"{UP}.scales", lambda x: np.full_like(x, np.nan)), "up_proj.scales.*not finite"),
    ("fp8", change(weight_block_size=None), "weight_block_size is null"),
    ("fp8", change(weight_block_size=[128]), "weight_block_size"),
    ("fp8", change(weight_block_size=[0, 128]), "weight_block_size"),
    ("fp8", change(fmt="e5m2"), "fmt"),
    ("fp8", put(f"{UP}.weight_scale_inv", lambda x: x[:, :1]), "up_proj.weight_scale_inv"),
    ("fp8", drop(f"{UP}.weight"), "up_proj.weight.*is missing"),
    ("own-4", change(version=2), "version 2 of the format.*reads version 1"),
    ("own-4", change(version=None), "version"),
    ("own-4", change(modules=[]), "modules"),
    ("own-4", change(modules={}), "is not described"),
    ("own-4", change(modules={UP: {"bits": 5, "group": 16, "shape": [72, 48]}}), "not described|bits is 5"),
    ("own-4", drop(f"{UP}.weight.codes"), "up_proj.weight.codes.*is missing"),
    ("own-4", drop(f"{UP}.weight.zeros"), "up_proj.weight.zeros.*is missing"),
    ("own-4", put(f"{UP}.weight.codes", lambda x: x[:, :-1]), "up_proj.weight.codes.*expected"),
    ("own-4", put(f"{UP}.weight.scales", lambda x: x.astype(np.int32)), "up_proj.weight.scales.*is i32"),
    ("own-4", put(f"{UP}.weight.scales", lambda x: x * np.float32(np.nan)), "up_proj.weight.scales.*not finite"),
    ("own-4", put(f"{UP}.weight.zeros", lambda x: x + 16), "up_proj.weight.zeros.*zero points beyond 0 to 15"),
    ("own-4", put(f"{UP}.weight.zeros", lambda x: -x.astype(np.int16) - 1), "zero points beyond"),
]


@pytest.mark.parametrize(
    ("name", "harm", "message"), BROKEN, ids=[f"{i}-{each[2][:24]}" for i, each in enumerate(BROKEN)]
)
def test_a_broken_folder_is_a_clear_error(tmp_path: Path, name: str, harm: Any, message: str) -> None:
    config, tensors, plain = FORMATS[name]()
    harm(config, tensors)
    folder = write_folder(tmp_path, config, tensors)
    with pytest.raises(ModelError, match=f"(?s){message}") as caught, ModelFolder(folder).open_weights() as reader:
        for tensor in plain:
            reader.read(tensor)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["gptq-4", "awq", "fp8", "own-4"])
def test_cut_and_flipped_files_end_in_errors_or_numbers(tmp_path: Path, name: str) -> None:
    """Whatever happens to the bytes of a file: a ModelError, or finite numbers of the right shape."""
    config, tensors, _ = FORMATS[name]()
    path = write_folder(tmp_path, config, tensors) / "model.safetensors"
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for trial in range(60):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        else:
            limit = len(data) if trial % 3 == 1 else int.from_bytes(data[:8], "little") + 8
            for at in rng.integers(0, limit, 4):
                data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            with ModelFolder(tmp_path).open_weights() as reader:
                for tensor in reader.names():
                    values = reader.read(tensor)
                    assert values.shape == reader.info(tensor).shape
        except ModelError as error:
            assert str(tmp_path) in str(error)


def test_the_last_tensors_are_read_once() -> None:
    """Chunks of a stacked weight go round its tensors; nothing is read again while they do."""
    reads: list[str] = []

    def read(name: str) -> np.ndarray:
        reads.append(name)
        return np.zeros(1)

    cache = TensorCache(read)
    stacked = [f"{module}.{suffix}" for module in "qkv" for suffix in ("qweight", "qzeros", "scales")]
    for _ in range(5):
        for name in stacked:
            cache(name)
    assert reads == stacked
    for name in map(str, range(CACHED_TENSORS)):
        cache(name)
    cache(stacked[-1])
    assert reads.count(stacked[-1]) == 2, "and older ones are let go"


def test_a_grid_counts_its_groups() -> None:
    assert [Grid(4, 16).groups(k) for k in (8, 16, 17, 48)] == [1, 1, 2, 3]
    assert Grid(8).groups(1000) == 1 and Grid(8).width(1000) == 1000 and Grid(4, 16).width(8) == 8
    order = np.array([2, 0, 1], "<i4")
    rows = Codes(np.array([[5, 6, 7]], np.uint8), np.array([[2.0, 0.5]], np.float32), np.array([[4, 0]], np.int16))
    np.testing.assert_array_equal(dequantize(rows, Grid(4, 2)), [[2.0, 4.0, 3.5]])
    np.testing.assert_array_equal(dequantize(rows, Grid(4, 2, order=order.tobytes())), [[4.0, 3.5, 2.0]])
