"""The quantization policy, and what it makes of a model's graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import CONFIG, LIMITS, Weights, run, transformer

from dashinfer_lite.devices.reference import ReferenceDevice
from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.encode import DTYPES, encode
from dashinfer_lite.graph.passes import PASS_NAMES
from dashinfer_lite.graph.program import Instr, Program, WeightSpec
from dashinfer_lite.graph.quant import GROUPS, QuantPolicy, QuantSpec, matrix_specs
from dashinfer_lite.weights.grid import Grid


def program_of(model: Any = transformer, **options: Any) -> Program:
    device = ReferenceDevice(col_align=options.pop("align", 1), head_align=options.pop("head_align", 1))
    defaults: dict[str, Any] = {"dtype": "bf16", "kv_dtype": "bf16", "limits": LIMITS, "blocks": 4}
    return build(model, CONFIG, device.info, **{**defaults, **options})


def instrs(program: Program, op: str) -> list[Instr]:
    return [instr for instr in (*program.body, *program.tail) if instr.op == op]


def linears(program: Program) -> dict[str, WeightSpec]:
    return {spec.name: spec for spec in program.weights if spec.kind == "linear"}


# ---- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bits", "group", "planes", "shown"),
    [
        ("a16w8", 8, 0, 2, "a16w8"),
        ("int8", 8, 0, 2, "a16w8"),
        ("a16w4", 4, 0, 2, "a16w4"),
        ("int4", 4, 0, 2, "a16w4"),
        ("a8w8", 8, 0, 1, "a8w8"),
        *((f"a16w4-g{group}", 4, group, 2, f"a16w4-g{group}") for group in GROUPS),
        ("a8w8-g128", 8, 128, 1, "a8w8-g128"),
    ],
)
def test_modes_are_read_and_shown(text: str, bits: int, group: int, planes: int, shown: str) -> None:
    spec = QuantSpec.parse(text)
    assert (spec.bits, spec.group, spec.planes, str(spec), spec.stored) == (bits, group, planes, shown, False)
    assert spec.grid.scale_dtype == ("bf16" if group else "f32")
    assert str(QuantPolicy.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "w8", "a16w3", "a8w4", "a16w8-g", "a16w8-g31", "a16w4-g1024", "A16W8", 8, "int4-g128"]
)
def test_unknown_modes_are_refused(text: Any) -> None:
    with pytest.raises(RequestError, match="it must be one of a16w8, a16w4, a8w8, int8, int4"):
        QuantPolicy.parse(text)
    with pytest.raises(RequestError):
        QuantPolicy.parse("a16w8", overrides={"*": text})


def test_the_head_is_8_bit_unless_told_otherwise() -> None:
    for mode in ("a16w8", "a16w4-g128", "a8w8"):
        assert str(QuantPolicy.parse(mode).of("lm_head", "head")) == "a16w8"
        assert QuantPolicy.parse(mode, head="bf16").of("lm_head", "head") is None
    assert QuantPolicy.parse(None).of("lm_head", "head") is None
    assert str(QuantPolicy.parse(None, head="int8").of("lm_head", "head")) == "a16w8"
    assert not QuantPolicy.parse("none") and QuantPolicy.parse(None, head="int8")
    with pytest.raises(RequestError, match="head is 'int4'"):
        QuantPolicy.parse("a16w8", head="int4")


def test_overrides_go_by_name_and_the_first_one_counts() -> None:
    policy = QuantPolicy.parse(
        "a16w4-g128",
        overrides={"model.layers.0.*": None, "*.down_proj": "a16w8", "*.layers.1.*": "a8w8", "lm_head": None},
    )
    shown = {
        name: str(policy.of(name))
        for name in ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj", "x")
    }
    assert list(shown.values()) == ["None", "a16w8", "a8w8", "a16w4-g128"]
    assert policy.of("lm_head", "head") is None
    assert policy.of("MODEL.layers.0.x") is not None, "names are compared with their case"


def test_routers_are_left_alone() -> None:
    policy = QuantPolicy.parse("a16w8", overrides={"*": "a8w8"})
    assert policy.of("anything", "router") is None
    assert policy.of("anything") is not None


def test_a_description_is_read_back() -> None:
    for policy in (
        QuantPolicy.parse("a16w4-g64", overrides={"*.o_proj": None, "*.k_proj": "a8w8"}, head="bf16"),
        QuantPolicy.parse("a8w8"),
        QuantPolicy.parse(None, head="int8"),
    ):
        assert QuantPolicy.from_description(policy.describe()) == policy
    for wrong in ({"quant": "a16w5"}, {"quant": 4}, {"overrides": []}, {"overrides": {"x": "y"}}, {"head": "x"}):
        with pytest.raises(ModelError):
            QuantPolicy.from_description(wrong)


def test_a_checkpoint_s_grid_wins() -> None:
    grids = {"a.x": Grid(8, 32, "f16"), "a.y": Grid(8, 32, "f16", b"1234")}
    policy = QuantPolicy.parse("a8w8").with_grids(grids)
    assert policy.of("a.x") == QuantSpec(grids["a.x"], planes=1, stored=True)
    assert policy.of("a.z") is None, "what the checkpoint left alone stays alone"
    assert str(policy.of("lm_head", "head")) == "a16w8"
    assert str(policy) == "a8w8-g32"
    assert QuantPolicy.parse(None).with_grids(grids).of("a.y") == QuantSpec(grids["a.y"], stored=True)
    with pytest.raises(RequestError, match=r"quant is a16w4, but the folder holds a.x in 8 bits"):
        QuantPolicy.parse("int4").with_grids(grids)


# ---- the graph -----------------------------------------------------------------------------------------------------


def test_matrices_are_named_in_order_and_nothing_else() -> None:
    specs = matrix_specs(transformer, CONFIG, QuantPolicy.parse("a16w4-g32", overrides={"layers.1.v": None}))
    assert list(specs)[:2] == ["embed", "layers.0.q"] and "layers.1.v" not in specs
    assert str(specs["embed"]) == "a16w8", "the tied head"
    assert {str(spec) for name, spec in specs.items() if name != "embed"} == {"a16w4-g32"}
    assert not matrix_specs(transformer, CONFIG, QuantPolicy())


def test_one_quantize_serves_all_linears_of_a_value() -> None:
    program = program_of(quant=QuantPolicy.parse("a16w8"), passes=())
    plain = program_of(passes=())
    assert len(instrs(program, "linear")) == len(instrs(plain, "linear")) == 9 * CONFIG.layers + 1
    # q, k, v share one; so do gate and up.
    assert len(instrs(program, "quantize")) == 6 * CONFIG.layers + 1
    assert not instrs(plain, "quantize")
    for instr in instrs(program, "quantize"):
        (x,), (planes, grid) = instr.inputs, instr.outputs
        assert program.slots[x].dtype == "f32" and program.slots[grid].dtype == "f32"
        assert program.slots[planes].dtype == "i8"
    assert not instrs(program, "cast")


def test_groups_planes_and_orders_of_their_own_are_quantized_apart() -> None:
    policy = QuantPolicy.parse("a16w8", overrides={"layers.0.k": "a8w8", "layers.0.v": "a16w4", "layers.0.up": None})
    program = program_of(quant=policy, passes=())
    first = program_of(quant=QuantPolicy.parse("a16w8"), passes=())
    # k wants one plane; v of 4 bits takes q's; up is not quantized, so its input is cast.
    assert len(instrs(program, "quantize")) == len(instrs(first, "quantize")) + 1
    assert len(instrs(program, "cast")) == 1
    names = {name: (spec.dtype, spec.quant_group) for name, spec in linears(program).items()}
    hidden = CONFIG.hidden
    assert names["layers.0.k"] == ("u8", hidden) and names["layers.0.v"] == ("u4", hidden)
    assert names["layers.0.up"] == ("bf16", 0)


def test_only_matrices_of_one_kind_are_stacked() -> None:
    policy = QuantPolicy.parse("a16w4", overrides={"layers.0.k": "a16w8", "layers.1.up": None})
    names = set(linears(program_of(quant=policy)))
    assert {"layers.0.{q,v}", "layers.0.k", "layers.1.{q,k,v}"} <= names
    assert {"layers.0.{gate,up}", "layers.1.gate", "layers.1.up"} <= names


def test_orders_must_be_equal_to_be_stacked() -> None:
    def order(*columns: int) -> bytes:
        rest = [column for column in range(CONFIG.hidden) if column not in columns]
        return np.array([*columns, *rest], "<i4").tobytes()

    one, other = order(3, 1), order(5)
    grids = {f"layers.0.{name}": Grid(4, 8, "f16", mine) for name, mine in (("q", one), ("k", one), ("v", other))}
    program = program_of(quant=QuantPolicy(grids=grids))
    assert {"layers.0.{q,k}", "layers.0.v"} <= set(linears(program))
    quantizes = instrs(program, "quantize")
    assert [program.weights[instr.weights[0]].value.view(np.int32)[:2].tolist() for instr in quantizes] == [  # type: ignore[union-attr]
        [3, 1],
        [5, 0],
    ]


@pytest.mark.parametrize(
    ("mode", "width"), [("a16w8", CONFIG.hidden), ("a16w4-g32", CONFIG.hidden), ("a8w8", CONFIG.hidden)]
)
def test_the_layout_that_devices_are_told(mode: str, width: int) -> None:
    program = program_of(quant=QuantPolicy.parse(mode), align=32, head_align=32, passes=())
    spec = linears(program)["layers.0.q"]
    assert (spec.k, spec.k_group, spec.k_group_padded, spec.quant_group) == (width, width, 64, width)
    assert (spec.k_padded, spec.groups) == (64, 1)
    quantize = instrs(program, "quantize")[0]
    planes = 1 if mode == "a8w8" else 2
    assert quantize.ints == (width, width, planes, 0, 0)
    assert [program.slots[slot].cols for slot in quantize.outputs] == [planes * 64, 32]
    linear = next(instr for instr in instrs(program, "linear") if instr.inputs[0] == quantize.outputs[0])
    assert linear.inputs == (quantize.outputs[0], -1, quantize.outputs[1])
    code = encode(program)
    at = program.weights.index(spec)
    assert code.weights[at]["dtype"] == DTYPES["u4" if "w4" in mode else "u8"]
    assert code.weights[at]["quant_group"] == width
    assert code.weights[at]["scale_dtype"] == DTYPES[spec.scale_dtype]
    row = code.instrs[[*program.body, *program.tail].index(linear)]
    assert row["in"][:4].tolist() == [*linear.inputs, -1]


@pytest.mark.parametrize(
    ("mode", "dtype", "kept"),
    [("a8w8", "bf16", "bf16"), ("a8w8", "f32", "f32"), ("a16w8", "bf16", "f32"), ("a16w4-g32", "bf16", "f32")],
)
def test_what_is_kept_as_8_bit_integers_passes_memory_in_bf16(mode: str, dtype: Any, kept: str) -> None:
    """16-bit integers are more than bf16 holds; a model in fp32 rounds nothing."""
    program = program_of(quant=QuantPolicy.parse(mode), dtype=dtype)
    inputs = [program.slots[instr.inputs[0]].dtype for instr in instrs(program, "quantize")]
    assert inputs[:-1] == [kept] * (len(inputs) - 1)
    assert inputs[-1] == "f32"  # the head takes 16 bits in every mode


def test_a_value_of_two_precisions_is_kept_in_the_higher_one() -> None:
    policy = QuantPolicy.parse("a8w8", overrides={"layers.0.k": "a16w8"})
    program = program_of(quant=policy, passes=())
    q, k = instrs(program, "quantize")[:2]
    assert (q.ints[2], k.ints[2]) == (1, 2)
    assert q.inputs[0] == k.inputs[0]
    assert program.slots[q.inputs[0]].dtype == "f32"


def test_several_groups_and_padded_heads() -> None:
    policy = QuantPolicy.parse(None, overrides={"layers.0.o": "a16w4-g32"})
    wide = type(CONFIG)(**{**vars(CONFIG), "size": 18})
    program = build(
        transformer,
        wide,
        ReferenceDevice(col_align=32, head_align=32).info,
        dtype="f32",
        kv_dtype="f32",
        limits=LIMITS,
        blocks=4,
        quant=policy,
    )
    spec = next(spec for spec in program.weights if spec.quant_group)
    k = CONFIG.heads * 18
    assert (spec.k, spec.quant_group, spec.groups, spec.k_padded, spec.scale_dtype) == (k, 32, 3, 3 * 64, "bf16")
    (quantize,) = instrs(program, "quantize")
    assert quantize.ints == (k, 32, 2, 18, 32)
    assert f"{spec.name}:u4-g32[32,192]" in program.dump()
    assert "K=72 group=32 planes=2 head=18 padded_head=32" in program.dump()


def test_a_tied_head_is_one_matrix_that_the_embedding_reads() -> None:
    program = program_of(quant=QuantPolicy.parse("a16w4"))
    (embed,) = instrs(program, "embed")
    head = instrs(program, "linear")[-1]
    assert embed.weights[0] == head.weights[0]
    assert program.weights[head.weights[0]].dtype == "u8"
    plain = program_of(quant=QuantPolicy.parse("a16w4", head="bf16"))
    assert plain.weights[instrs(plain, "embed")[0].weights[0]].dtype == "bf16"


def untied(g: Graph, c: Any) -> object:
    return g.logits(g.embed("embed", c.vocab, c.hidden), "head", c.vocab)


def test_an_embedding_of_its_own_stays_as_it_is() -> None:
    program = program_of(untied, quant=QuantPolicy.parse("a16w4"))
    assert [(spec.name, spec.kind, spec.dtype) for spec in program.weights] == [
        ("embed", "table", "bf16"),
        ("head", "linear", "u8"),
    ]


# ---- what it computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["a16w8", "a16w4-g32", "a8w8"])
def test_passes_and_padding_change_nothing(mode: str) -> None:
    """Sums are integers, so only the few fp32 roundings around them can differ."""
    weights, policy = Weights(), QuantPolicy.parse(mode, overrides={"*.k": "a16w8-g32"})
    plain, _ = run(transformer, CONFIG, weights, (), quant=policy)
    bound = 2e-3 if mode != "a8w8" else 0.1
    for passes in (PASS_NAMES, *((name,) for name in PASS_NAMES)):
        for align in (1, 32):
            got, _ = run(transformer, CONFIG, weights, passes, align=align, quant=policy)
            np.testing.assert_allclose(got, plain, atol=bound, rtol=0, err_msg=f"{passes} {align}")


def test_accuracy_follows_the_bits() -> None:
    weights = Weights()
    exact, _ = run(transformer, CONFIG, weights, PASS_NAMES)
    errors = []
    for mode in ("a16w8", "a8w8", "a16w4-g32"):
        got, _ = run(transformer, CONFIG, weights, PASS_NAMES, quant=QuantPolicy.parse(mode))
        errors.append(float(np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))))
    assert 1e-4 < errors[0] < errors[1] < errors[2] < 0.5
    assert errors[0] < 0.02
