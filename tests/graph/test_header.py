"""The op catalogue and the encoded structures are those of the C header."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import dashinfer_lite
from dashinfer_lite.devices.step import SAMPLE_DTYPE
from dashinfer_lite.graph import encode, ops
from dashinfer_lite.graph.rope_frequencies import RopeKind

HEADER = Path(dashinfer_lite.__file__).parent / "include" / "dashinfer_device.h"
# The header's word for an attribute, where it is not the catalogue's.
WORDS = {"cols": ("columns", "as"), "padded_head": ("padded",), "act": ("activation", "di_act"), "softcap": ("soft",)}
WORDS |= {"section2": ("sections",), "interleaved": ("sections",)}


def enumeration(prefix: str) -> dict[str, int]:
    """NAME = value pairs of the header, without the prefix, in lower case."""
    pairs = re.findall(rf"\b{prefix}(\w+)\s*=\s*(\d+)", HEADER.read_text())
    return {name.lower(): int(value) for name, value in pairs}


def comments() -> dict[str, str]:
    """Operation → the text of its comment."""
    text = HEADER.read_text()
    found = re.findall(r"DI_OP_(\w+)\s*=\s*\d+,?\s*/\*(.*?)\*/", text, re.S)
    return {name.lower(): " ".join(comment.split()) for name, comment in found}


def test_codes_are_the_header_s() -> None:
    assert {name: op.code for name, op in ops.OPS.items()} == enumeration("DI_OP_")
    acts = enumeration("DI_ACT_")
    assert acts.pop("none") == ops.ACT_NONE
    assert {name: acts[name] for name in ops.ACTIVATIONS} == ops.ACTIVATIONS
    assert {f"{name}_mul": code + ops.GATED for name, code in ops.ACTIVATIONS.items()}.items() <= acts.items()
    assert {kind.name.lower(): kind.value for kind in RopeKind} == {
        name: code for name, code in enumeration("DI_ROPE_").items() if name not in ops.ROPE_STYLES
    }
    assert {name: enumeration("DI_ROPE_")[name] for name in ops.ROPE_STYLES} == ops.ROPE_STYLES
    assert re.search(r"#define DI_ACT_MUL_BIT (\d+)", HEADER.read_text())[1] == str(ops.GATED)  # type: ignore[index]


@pytest.mark.parametrize("name", ops.OPS)
def test_attributes_stand_in_the_header_s_order(name: str) -> None:
    """Every "i3 D" and "f0 eps" of an op's comment is the attribute at that place, and no attribute lacks a place."""
    op, comment = ops.OPS[name], comments()[name]
    for kind, attributes in (("i", op.ints), ("f", op.floats)):
        for at, word in re.findall(rf"\b{kind}(\d) ([A-Za-z]\w*)", comment):
            attribute = attributes[int(at)]
            assert word in WORDS.get(attribute, (attribute,)), (kind, at, word)
        assert {int(at) for at in re.findall(rf"\b{kind}(\d)\b", comment)} <= {*range(len(attributes))}
        assert not attributes or re.search(rf"\b{kind}{len(attributes) - 1}\b", comment), (kind, attributes)
    assert len(op.ints) <= encode.MAX_INT and len(op.floats) <= encode.MAX_FLOAT
    assert len(op.inputs) <= encode.MAX_IN and len(op.weights) <= encode.MAX_WEIGHT
    assert op.meaning.endswith(".")


def test_structures_have_the_header_s_layout(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    structures = {
        "di_slot": encode.SLOT_DTYPE,
        "di_instr": encode.INSTR_DTYPE,
        "di_weight_desc": encode.WEIGHT_DTYPE,
        "di_sample": SAMPLE_DTYPE,
    }
    lines = [f'#include "{HEADER}"', "#include <stdio.h>", "int main(void) {"]
    for struct, dtype in structures.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        lines += [f'printf("{struct}.{n} %zu\\n", offsetof({struct}, {n}));' for n in dtype.names or ()]
    source, binary = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([compiler, "-std=c11", source, "-o", binary], check=True)
    printed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    wanted: dict[str, int] = {}
    for struct, dtype in structures.items():
        wanted[struct] = dtype.itemsize
        wanted |= {f"{struct}.{name}": int(field[1]) for name, field in (dtype.fields or {}).items()}
    assert {line.split()[0]: int(line.split()[1]) for line in printed.splitlines()} == wanted


def test_limits_are_the_header_s() -> None:
    text = HEADER.read_text()
    for name in ("MAX_IN", "MAX_OUT", "MAX_WEIGHT", "MAX_INT", "MAX_FLOAT"):
        assert re.search(rf"#define DI_{name} (\d+)", text)[1] == str(getattr(encode, name))  # type: ignore[index]
    assert re.search(r"#define DI_INSTR_SYNC (\d+)u", text)[1] == str(encode.SYNC)  # type: ignore[index]
    assert np.dtype(encode.INSTR_DTYPE).itemsize == 92
