"""Products of many rows through the stand-in for cuBLASLt, which checks all that it is told, and what happens without.

Every product is compared with float64; a tiny model runs through it as a whole, captured steps too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import Emulator, cuda_package, emulator, missing
from large_product import EPILOGUES, TYPES, product
from one_op import Bench, Maker, Span
from safetensors.numpy import load_file
from stepping import Loop, load

from dashinfer_lite.devices import open_device
from dashinfer_lite.engine import Engine
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.sampling_params import SamplingParams

SETTINGS = ("cublaslt", "cublaslt_rows", "graphs")


@pytest.fixture
def emulated() -> Iterator[Emulator]:
    """The device "cuda" on the emulator, with cuBLASLt for products of more than one row."""
    if why := missing():
        pytest.skip(why)
    made = emulator()
    made.register()
    made.set("cublaslt", str(made.driver))
    made.set("cublaslt_rows", "1")
    yield made
    for name in SETTINGS:
        made.set(name, "")
    made.register()


def calls(emulated: Emulator) -> int:
    """How many products the library has computed."""
    return int(emulated.control().emu_count(b"cublasLtMatmul"))


@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: "-".join(map(str, e)) or "plain")
def test_products(emulated: Emulator, types: tuple[str, str, str], epilogue: dict[str, Any]) -> None:
    """Every type with every epilogue, rows and columns that fill no tile."""
    x_type, w_type, out = types
    if out != "f32" and epilogue.get("residual") == "in place":
        pytest.skip("residuals are fp32")
    before = calls(emulated)
    device = open_device("cuda")
    assert product(device, 37, 128, 160, x_type, w_type, out=out, **epilogue) <= 1
    device.close()
    assert calls(emulated) - before == (2 if w_type == "f16" else 1)


def test_pieces(emulated: Emulator) -> None:
    """What does not fit the memory between two kernels comes in pieces of rows."""
    device = open_device("cuda")
    before = calls(emulated)
    assert product(device, 260, 64 * 1024, 32, "bf16", "bf16", bias=True) <= 1
    device.close()
    assert calls(emulated) - before == 2  # 256 rows of 256 KiB are 64 MiB


@pytest.mark.parametrize("residual", ["", "beside", "in place"])
@pytest.mark.parametrize("w_type", ["bf16", "f16", "f32"])
def test_columns_of_wider_activations(emulated: Emulator, w_type: str, residual: str) -> None:
    """Leading dimensions are not the numbers of columns."""
    device = open_device("cuda")
    x_type = "f32" if w_type == "f16" else w_type
    for beside in ((32, 64), (0, 32)):
        assert product(device, 37, 96, 64, x_type, w_type, residual=residual, beside=beside) <= 1
    device.close()


@pytest.mark.parametrize("wider", ["x", "y", "residual", "aligned"])
def test_two_of_one_size(emulated: Emulator, wider: str) -> None:
    """An algorithm is for the strides and the alignment that it was found for, not for all products of a size."""
    device = open_device("cuda")
    maker = Maker(device.info, tokens=40)
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal((40, 64)).astype(np.float32), rng.standard_normal((64, 64)).astype(np.float32)

    def slot(name: str, at: int) -> int:
        if wider == "aligned":  # to 256 bytes, or to 128
            return maker.view(maker.slot(128), 32 * at, 64)
        return maker.view(maker.slot(128), 64, 64) if at and wider == name else maker.slot(64)

    w = maker.matrix(64, 64)
    products = [(slot("x", at), slot("residual", at), slot("y", at)) for at in range(2)]
    for x, r, y in products:
        maker.op("linear", (x, r), (y,), (w, -1))
    bench = Bench(device, maker)
    bench.matrix(w, weights)
    for x, r, _ in products:
        bench.put(x, values)
        bench.put(r, values)
    bench.run(Span(40))
    for _, _, y in products:
        np.testing.assert_allclose(bench.get(y, 40), values @ weights.T + values, rtol=0, atol=1e-4)
    bench.close()
    device.close()


def test_few_rows_stay_here(emulated: Emulator) -> None:
    """The rule: more rows than the bound."""
    emulated.set("cublaslt_rows", "")
    device = open_device("cuda")
    for rows, expected in ((64, 0), (65, 1)):
        before = calls(emulated)
        assert product(device, rows, 32, 32, "bf16", "bf16") <= 1
        assert calls(emulated) - before == expected
    device.close()


# ---- whole models ----------------------------------------------------------------------------------------------------

PROMPTS = ("p0", "p1", "p2")
NEW_TOKENS = 8


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_a_model(emulated: Emulator, golden: Path, dtype: Any) -> None:
    """All products of a model: tokens of the reference, in 16 bit up to the first uncertain step."""
    folder = golden / "qwen2_5"
    budget = json.loads((folder / "golden.json").read_text())["low_precision_reference_error"]
    expected = load_file(folder / "golden.safetensors")
    before = calls(emulated)
    device = open_device("cuda")
    limits = Limits(max_tokens=128, tail_rows=16, max_seqs=4)
    executable, program = load(
        folder, device, dtype=dtype, kv_dtype="bf16" if dtype == "bf16" else "f32", limits=limits
    )
    sequences = Loop(executable, program).generate([expected[f"{p}.input_ids"].tolist() for p in PROMPTS], NEW_TOKENS)
    executable.close()
    device.close()
    assert calls(emulated) > before
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        margin = 0 if dtype == "f32" else 4 * budget["rms"]
        unsure = np.flatnonzero(expected[f"{prompt}.greedy_margin"][:NEW_TOKENS] < margin)
        sure = int(unsure[0]) if len(unsure) else NEW_TOKENS
        assert sequence.drawn[:sure] == expected[f"{prompt}.greedy_ids"].tolist()[:sure], prompt


def test_in_a_graph(emulated: Emulator, golden: Path) -> None:
    """Captured steps hold the library's products too; replayed, they give the same tokens."""
    expected = load_file(golden / "qwen2_5" / "golden.safetensors")
    device = open_device("cuda")
    limits = Limits(max_tokens=64, max_seqs=3, tail_rows=4, max_logprobs=4)
    executable, program = load(golden / "qwen2_5", device, limits=limits, blocks=12, block_tokens=32)
    engine = Engine(executable, program)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    graphs = emulated.control().emu_count(b"cuGraphLaunch")
    requests = [engine.submit(expected[f"{prompt}.input_ids"].tolist(), params) for prompt in PROMPTS]
    tokens = [request.result().outputs[0].token_ids for request in requests]
    engine.stop()
    executable.close()
    device.close()
    assert tokens == [expected[f"{prompt}.greedy_ids"].tolist()[:16] for prompt in PROMPTS]
    assert emulated.control().emu_count(b"cuGraphLaunch") - graphs >= 5


# ---- where it cannot be used -----------------------------------------------------------------------------------------


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "dashinfer_cuda"]


def runs_without(emulated: Emulator) -> None:
    """Two programs on one GPU compute right without the library."""
    before = calls(emulated)
    device = open_device("cuda")
    for _ in range(2):
        assert product(device, 37, 96, 160, "bf16", "bf16", residual="in place") <= 1
    device.close()
    assert calls(emulated) - before <= 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere/libcublasLt.so.12", "not found"),
        ("host", "lacks cublasLtGetVersion"),
        ("libm.so.6", "lacks cublasLtGetVersion"),
    ],
)
def test_a_library_that_is_none(emulated: Emulator, caplog: pytest.LogCaptureFixture, path: str, reason: str) -> None:
    """One warning; the kernels of the package do the work."""
    emulated.set("cublaslt", str(emulated.host) if path == "host" else path)
    with caplog.at_level(logging.WARNING):
        runs_without(emulated)
    (text,) = notices(caplog)
    assert text.startswith("cuBLASLt is not used") and reason in text
    assert not cuda_package().describe_cublaslt(emulated.host)[0]


@pytest.mark.parametrize(
    ("version", "arch", "reason"),
    [
        ("10200", 80, "version 10.2.0; 11 to 13"),
        ("140000", 80, "version 14.0.0"),
        pytest.param("130002", 70, "no kernels for sm_70", marks=pytest.mark.slow),
    ],
)
def test_versions(
    emulated: Emulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, version: str, arch: int,
    reason: str,
) -> None:  # fmt: skip
    """Too old, too new, and too new for the chip."""
    if arch == 70:
        other = emulator(70)
        emulated.set("kernels", str(other.kernels))
    monkeypatch.setenv("DASHINFER_EMU_CUBLASLT", version)
    monkeypatch.setenv("DASHINFER_EMU_ARCH", str(arch))
    with caplog.at_level(logging.WARNING):
        runs_without(emulated)
    (text,) = notices(caplog)
    assert reason in text


def test_versions_that_serve(emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, text in (("11402", "11.4.2"), ("120901", "12.9.1"), ("130002", "13.0.2")):
        monkeypatch.setenv("DASHINFER_EMU_CUBLASLT", version)
        assert cuda_package().describe_cublaslt(emulated.host) == (True, f"{emulated.driver}, version {text}")
    emulated.set("cublaslt", "0")
    assert cuda_package().describe_cublaslt(emulated.host) == (False, "DASHINFER_CUDA_CUBLASLT turns it off")


@pytest.mark.parametrize(
    ("entry", "nth", "reason"),
    [
        ("cublasLtCreate", 1, "does not start (status 1)"),
        ("cublasLtMatmulDescCreate", 1, "describes no product"),
        ("cublasLtMatmul", 1, "a product fails (status 13)"),
    ],
)
def test_a_library_that_fails(
    emulated: Emulator, caplog: pytest.LogCaptureFixture, entry: str, nth: int, reason: str
) -> None:
    emulated.control().emu_fail(entry.encode(), nth)
    with caplog.at_level(logging.WARNING):
        before = calls(emulated)
        device = open_device("cuda")
        assert product(device, 37, 96, 160, "bf16", "bf16", residual="in place") <= 1
        device.close()
    assert calls(emulated) - before == (entry == "cublasLtMatmul")
    (text,) = notices(caplog)
    assert reason in text


@pytest.mark.parametrize(
    ("entry", "nth", "x_type", "w_type"),
    [
        ("cublasLtMatmulAlgoGetHeuristic", 1, "bf16", "bf16"),
        ("cublasLtMatmulAlgoGetHeuristic", 2, "f32", "f16"),  # for the second of two products
        ("cublasLtMatrixLayoutCreate", 1, "bf16", "bf16"),
    ],
)
def test_shapes_that_it_has_nothing_for(
    emulated: Emulator, caplog: pytest.LogCaptureFixture, entry: str, nth: int, x_type: str, w_type: str
) -> None:
    """A shape without an algorithm is computed here, without a word; others are not."""
    emulated.control().emu_fail(entry.encode(), nth)
    device = open_device("cuda")
    with caplog.at_level(logging.WARNING):
        for expected in (0, nth):
            before = calls(emulated)
            assert product(device, 37, 96, 160, x_type, w_type) <= 1
            assert calls(emulated) - before == expected
    device.close()
    assert not notices(caplog)


def test_memory_that_is_not_there(emulated: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever of its allocations fails, the program runs without it, and gives everything back."""
    control = emulated.control()
    held, heard = control.emu_count(b"allocations"), 0
    device = open_device("cuda")
    before = control.emu_count(b"cuMemAlloc_v2")
    assert product(device, 37, 96, 160, "bf16", "bf16", bias=True) <= 1
    needed = control.emu_count(b"cuMemAlloc_v2") - before
    for at in range(1, needed + 1):
        caplog.clear()
        control.emu_fail(b"cuMemAlloc_v2", at)
        with caplog.at_level(logging.WARNING):
            try:
                assert product(device, 37, 96, 160, "bf16", "bf16", bias=True) <= 1
            except Exception as error:
                assert "no memory for" in str(error)
        heard += len(notices(caplog))
        assert all("the GPU has no memory for" in text for text in notices(caplog))
    device.close()
    control.emu_fail(b"cuMemAlloc_v2", 10**9)
    assert heard == 2  # the workspace, and the memory between kernels
    assert control.emu_count(b"allocations") == held


def test_closing_gives_everything_back(emulated: Emulator) -> None:
    """Handles, layouts and descriptions."""
    control = emulated.control()
    pairs = [("cublasLtCreate", "cublasLtDestroy")]
    pairs += [(f"cublasLt{what}Create", f"cublasLt{what}Destroy") for what in ("MatmulDesc", "MatrixLayout")]
    before = [[control.emu_count(name.encode()) for name in pair] for pair in pairs]
    device = open_device("cuda")
    assert product(device, 37, 96, 160, "f32", "f16", bias=True) <= 1
    device.close()
    after = [[control.emu_count(name.encode()) for name in pair] for pair in pairs]
    made = [[new - old for new, old in zip(*both, strict=True)] for both in zip(after, before, strict=True)]
    assert made == [[1, 1], [1, 1], [8, 8]]
