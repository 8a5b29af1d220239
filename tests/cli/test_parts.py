"""The parts of the program that need no model: terminal, progress, cost, random weights, samples."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest

from dashinfer_lite import ModelError
from dashinfer_lite.cli import bench_meter
from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.cli.bench_meter import Measured, Roofs, Sample, take_samples
from dashinfer_lite.cli.bench_model import SHAPES, SPREAD, RandomWeights, shape_config, tensor_shapes
from dashinfer_lite.cli.bench_result import Line
from dashinfer_lite.cli.progress import ProgressBar
from dashinfer_lite.cli.terminal import Style, size, table
from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.weights import to_float32


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for those who want them."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style(Terminal()).bold("x") == "\x1b[1mx\x1b[0m"
    assert Style(io.StringIO()).bold("x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style(Terminal()).bold("x") == "x"


def test_progress_shows_on_terminals_and_wipes_itself() -> None:
    """Elsewhere it writes nothing."""
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with ProgressBar("loading", stream=stream) as progress:
            for done in range(0, 101, 10):
                progress(done << 20, 100 << 20)
    assert "100%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert pipe.getvalue() == ""


def test_sizes_and_tables() -> None:
    """Units by powers of 1024; columns aligned."""
    assert [size(n) for n in (0, 1023, 1536, 3 << 20, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB", "5.00 GiB"]
    assert table(["a", "bb"], [["ccc", "d"]]) == "a    bb\n---  --\nccc   d"


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("qwen2.5-0.5b", 494_032_768), ("qwen2.5-1.5b", 1_543_714_304)],
)
def test_shapes_are_those_of_the_models(shape: str, parameters: int) -> None:
    """The parameter counts that the models' own pages give."""
    assert sum(np.prod(s) for s in tensor_shapes(shape_config(shape)).values()) == parameters


def test_layers_of_experts_are_those_of_qwen3_30b_a3b() -> None:
    """With as many of them and as many experts, the parameter count is that of the model's page."""
    whole = {"num_hidden_layers": 48, "num_experts": 128, "vocab_size": 151936, "tie_word_embeddings": False}
    shapes = tensor_shapes(shape_config("qwen3-moe-1b") | whole)
    assert sum(np.prod(s) for s in shapes.values()) == 30_532_122_624


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_every_tensor_that_their_model_needs(shape: str) -> None:
    """By the model definition itself."""
    config = shape_config(shape)
    model = find_model(config["architectures"][0], config)
    info = ReferenceDevice().info
    program = build(
        model.forward, model.config.from_dict(config), info, dtype="bf16", kv_dtype="bf16", limits=Limits(), blocks=1
    )  # fmt: skip
    assert {part.name for weight in program.weights for part in weight.parts} == set(tensor_shapes(config))


def test_random_weights_are_normal_and_the_same_in_every_read() -> None:
    """Rows read alone equal those read together; norms are 1; what does not exist is an error."""
    weights = RandomWeights(tensor_shapes(shape_config("tiny")))
    name = "model.layers.0.mlp.down_proj.weight"
    whole = weights.read(name)
    assert whole.shape == weights.info(name).shape == (64, 128)
    assert np.array_equal(weights.read_rows(name, 7, 9), whole[7:9])
    assert not np.array_equal(whole[0], whole[1])
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert np.array_equal(weights.read_rows(bias, 3, 9), weights.read(bias)[3:9])
    values = to_float32(weights.read("model.embed_tokens.weight"), "bf16")
    assert values.std() == pytest.approx(SPREAD, rel=0.05)
    assert set(to_float32(weights.read("model.norm.weight"), "bf16")) == {1.0}
    with pytest.raises(ModelError, match="lacks"):
        weights.info("model.layers.9.norm.weight")


def test_cost_counts_what_a_step_reads_and_computes() -> None:
    """Against the formulas, by hand, for an unpadded Qwen2 with a tied head."""
    config = shape_config("tiny")
    model = find_model(config["architectures"][0], config)
    program = build(
        model.forward, model.config.from_dict(config), ReferenceDevice().info, dtype="bf16", kv_dtype="bf16",
        limits=Limits(max_tokens=512), blocks=4,
    )  # fmt: skip
    cost = cost_of(program, 1)
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128
    assert cost.matmul_weights == 2 * layer
    assert cost.head_weights == 512 * 64
    assert cost.linear_bytes == 2 * (2 * layer + 512 * 64)
    assert cost.kv_token_bytes == 2 * 2 * 2 * 16 * 2
    assert cost.pair_operations == 2 * 4 * 4 * 16
    assert cost.prefill_operations(3) == 2 * 2 * layer * 3 + cost.pair_operations * 6 + 2 * 512 * 64
    assert cost.decode_bytes(5, 100) == cost.linear_bytes + 5 * 100 * cost.kv_token_bytes


def test_cost_of_experts_is_that_of_the_ones_that_tokens_choose() -> None:
    """By hand: 2 of 6 experts a token; several tokens are expected to choose less than as many different ones."""
    config = shape_config("tiny-moe")
    model = find_model(config["architectures"][0])
    program = build(
        model.forward, model.config.from_dict(config), ReferenceDevice().info, dtype="bf16", kv_dtype="bf16",
        limits=Limits(max_tokens=512), blocks=4,
    )  # fmt: skip
    cost = cost_of(program, 1)
    expert, others = 3 * 64 * 48, 64 * 64 + 2 * 32 * 64 + 64 * 64 + 6 * 64
    assert cost.matmul_weights == 2 * (others + 2 * expert)
    assert cost.expert_bytes == 2 * 2 * 6 * expert
    assert cost.linear_bytes == 2 * (2 * others + 512 * 64)
    assert cost.step_bytes(1) == pytest.approx(cost.linear_bytes + cost.expert_bytes / 3)
    assert cost.step_bytes(2) == pytest.approx(cost.linear_bytes + cost.expert_bytes * (1 / 3 + 2 / 9))
    assert cost.prefill_bytes(512) == pytest.approx(cost.linear_bytes + cost.expert_bytes)
    assert cost.prefill_bytes(513) == pytest.approx(
        cost.step_bytes(512) + cost.step_bytes(1) + 512 * cost.kv_token_bytes
    )


def test_the_roof_is_the_one_that_binds() -> None:
    """Products that wait for their weights are held to the read bandwidth."""
    for bytes_read, roof in ((30.0, "read"), (10.0, "matrix")):
        value = Measured(seconds=4.0, tokens=1, bytes_read=bytes_read, operations=200.0)
        line = Line.of("x", "matrix", [Sample(value, Roofs(10.0, 100.0), 0.0)])
        assert (line.roof, line.share) == (roof, {"read": 0.75, "matrix": 0.5}[roof])


def test_cost_counts_scales_and_zero_points() -> None:
    """By hand: groups of 32 columns, padded to 64 codes each, with a bf16 scale and a 16-bit zero point; int8 head."""
    config = shape_config("tiny")
    model = find_model(config["architectures"][0], config)
    program = build(
        model.forward, model.config.from_dict(config), ReferenceDevice().info, dtype="bf16", kv_dtype="u4",
        limits=Limits(max_tokens=512), blocks=4, quant=QuantPolicy.parse("a16w4-g32"),
    )  # fmt: skip
    cost = cost_of(program, 1)
    group = 64 // 2 + 2 + 2
    layer = (64 + 2 * 32 + 64 + 2 * 128) * 2 * group + 64 * 4 * group
    assert cost.linear_bytes == 2 * layer + 512 * (64 + 4 + 2)
    assert cost.kv_token_bytes == 2 * 2 * (2 * 16 // 2 + 16)


def samples_under(contention: list[float | None], monkeypatch: pytest.MonkeyPatch, count: int) -> Line:
    """A line of samples whose contention is given in order."""
    shares = iter(contention)
    monkeypatch.setattr(bench_meter, "Contention", lambda: SimpleNamespace(share=lambda: next(shares)))
    values = iter(range(1, 100))
    samples = take_samples(
        lambda: Measured(seconds=1.0, tokens=next(values), bytes_read=5.0),
        lambda: Roofs(10.0, 0.0),
        count,
        least_s=0.0,
        progress=lambda done, total: None,
    )
    return Line.of("x", "read", samples)


def test_disturbed_samples_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The valid ones count."""
    line = samples_under([0.0, 0.5, 0.04, 0.06, 0.0], monkeypatch, 3)
    assert line.rates == [1, 3, 5]
    assert line.is_valid
    assert line.share == 0.5


def test_a_line_without_quiet_samples_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """After twice as many as were asked for; so is one on a system that does not count."""
    line = samples_under([0.5, 0.0, 0.5, 0.5], monkeypatch, 2)
    assert line.rates == [1, 2, 3, 4]
    assert not line.is_valid
    assert "INVALID" in line.cells()
    unknown = samples_under([None, None], monkeypatch, 2)
    assert unknown.rates == [1, 2]
    assert not unknown.is_valid


def test_contention_is_the_work_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Busy and stolen time of the system less our own, over what the processors could have done."""
    moments = iter([0.0, 4.0])
    monkeypatch.setattr(bench_meter.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(bench_meter.os, "cpu_count", lambda: 2)
    others = iter([10.0, 12.0])
    monkeypatch.setattr(bench_meter, "_others_s", lambda: next(others))
    assert bench_meter.Contention().share() == 0.25
