"""The op catalogue: every operation that a program may hold, and the op reference.

Codes and the order of attributes are those of `include/dashinfer_device.h`. Dimension letters: T tokens of a step, R
logit rows, H hidden, N columns out, K columns in, Hq query heads, Hkv key/value heads, D head size, V vocabulary, h
rotated pairs of a head, k experts of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Op:
    """One kind of instruction.

    `inputs` and `weights` name the operands in order; a trailing "?" marks one that may be missing. `ints` and `floats`
    name the attributes in the header's order. `in_place` lists the inputs whose slot the output may take. `overwrites`
    lists the inputs that the kernel changes: the output takes the first one's slot, nobody reads the others again.
    `row_wise` ops compute row i of the output from row i of the inputs alone. `narrow` ops can write bf16 activations.
    `output` is false for ops that only have an effect.
    """

    name: str
    code: int
    inputs: tuple[str, ...]
    meaning: str
    weights: tuple[str, ...] = ()
    ints: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    in_place: tuple[int, ...] = ()
    overwrites: tuple[int, ...] = ()
    row_wise: bool = True
    narrow: bool = False
    output: bool = True


_CATALOGUE: Final = (
    Op(
        "embed",
        1,
        (),
        "out[T,H] fp32 = table[token[T]] · scale. The table is row-major [V,H], or the packed head where both are "
        "tied. Rows that the step lists as external take their hidden state from the step instead (images, audio), "
        "unscaled.",
        weights=("table",),
        floats=("scale",),
    ),
    Op(
        "rope_table",
        2,
        (),
        "out[T,2h] fp32 = cos | sin of position · inv_freq[h], times the attention factor. One position row, or up "
        "to three with `section` frequencies each, in runs or interleaved. Kind dynamic derives the base, kind long "
        "picks the frequencies, from max(prompt length, position + 1); kind prompt derives the base from the prompt "
        "length. With logn, rows from that position on are multiplied by log(position + 1) / log(logn).",
        weights=("inv_freq", "long_inv_freq?"),
        ints=("kind", "h", "original", "section0", "section1", "section2", "interleaved", "logn"),
        floats=("attention", "scaling", "theta"),
    ),
    Op(
        "rms_norm",
        3,
        ("x",),
        "out = x / sqrt(mean(x²) + eps) · w over the first `cols` columns; padded columns of out are zero.",
        weights=("w",),
        ints=("cols",),
        floats=("eps",),
        narrow=True,
    ),
    Op(
        "layer_norm",
        4,
        ("x",),
        "out = (x - mean) / sqrt(var + eps) · w + b over the first `cols` columns; padded columns of out are zero.",
        weights=("w", "b?"),
        ints=("cols",),
        floats=("eps",),
        narrow=True,
    ),
    Op(
        "linear",
        5,
        ("x", "residual?", "grid?"),
        "out[.,N] = act(x[.,K] · w[N,K]ᵀ + b[N]) + residual. A gated activation reads w as alternating groups of 16 "
        "gate and 16 up rows and writes N/2 columns act(gate) · up. x has the activation type of the weights (bf16 "
        "for bf16, else fp32), residual is fp32 and may be out itself. A quantized w multiplies the planes and the "
        "grid that quantize made of x.",
        weights=("w", "b?"),
        ints=("act",),
        in_place=(1,),
        narrow=True,
    ),
    Op(
        "head_norm",
        6,
        ("x",),
        "RMS norm of each of `heads` heads over its D columns, with one weight w[D] for all; in place.",
        weights=("w",),
        ints=("heads", "D"),
        floats=("eps",),
        overwrites=(0,),
    ),
    Op(
        "rope",
        7,
        ("x", "table"),
        "Rotates the first `rotary` columns of each head by the table's angles, as halves (i, i + h) or as "
        "interleaved pairs (2i, 2i + 1); in place.",
        ints=("heads", "D", "rotary", "style"),
        overwrites=(0,),
    ),
    Op(
        "kv_write",
        8,
        ("k", "v"),
        "Stores keys and values [T,Hkv·D] of the step's tokens in the layer's KV blocks, rounded to the cache's type.",
        ints=("layer", "Hkv", "D"),
        output=False,
    ),
    Op(
        "rope_kv",
        9,
        ("q", "k", "v", "table?"),
        "Everything between the projections and attention: head norms of q and k (where given), rope of q and k "
        "(where there is a table), the store of k and v. Works in place: out is q, and k is overwritten with what "
        "was stored.",
        weights=("q_norm?", "k_norm?"),
        ints=("layer", "Hq", "Hkv", "D", "rotary", "style"),
        floats=("eps",),
        overwrites=(0, 1),
    ),
    Op(
        "attention",
        10,
        ("q",),
        "out[T,Hq·D] = softmax(mask(cap(scale · q·kᵀ))) · v over the sequence's blocks. A row sees its own and "
        "earlier tokens, at most `window` of them (0: all); the bidirectional head of a sequence sees itself. ALiBi "
        "adds slope · position of the key. Sinks add one logit without a value to each row.",
        weights=("alibi?", "sinks?"),
        ints=("layer", "Hq", "Hkv", "D", "window"),
        floats=("scale", "softcap"),
        row_wise=False,
        narrow=True,
    ),
    Op("act", 11, ("x",), "out = act(x).", ints=("act",), in_place=(0,), narrow=True),
    Op("mul", 12, ("a", "b"), "out = a · b.", in_place=(0, 1), narrow=True),
    Op("add", 13, ("a", "b"), "out = a + b.", in_place=(0, 1), narrow=True),
    Op("scale", 14, ("x",), "out = x · factor.", floats=("factor",), in_place=(0,), narrow=True),
    Op("softcap", 15, ("x",), "out = cap · tanh(x / cap).", floats=("cap",), in_place=(0,), narrow=True),
    Op(
        "cast",
        16,
        ("x",),
        "out = x in the output's dtype, rounded to nearest even; with equal dtypes a copy.",
        narrow=True,
    ),
    Op(
        "gather_rows",
        17,
        ("x",),
        "out[R,.] = x[logit_row[R],.]: the rows whose logits are wanted. Here the tail begins: it runs on tiles of "
        "logit rows.",
        row_wise=False,
        narrow=True,
    ),
    Op(
        "sample",
        18,
        ("logits",),
        "Draws or scores a token from each row of logits[R,V] and fills the step's results.",
        ints=("V",),
        row_wise=False,
        output=False,
    ),
    Op(
        "quantize",
        19,
        ("x",),
        "For each row and group of K columns: scale = max |x| / 32512 (one plane: / 127), a = rint(x / scale). out is "
        "a as int8 planes, (a + 128) >> 8 and what that leaves; a second output holds the scales and the sums of a. "
        "Columns are taken in `order`, which names K different ones, or without the padding of each head. Every group "
        "is padded to 64.",
        weights=("order?",),
        ints=("K", "group", "planes", "head", "padded_head"),
    ),
    Op(
        "route",
        20,
        ("logits",),
        "out[T,2k] fp32: the `chosen` experts of each token in ascending order (int32 bits), then their weights. With "
        "p = softmax(logits) over all experts, these are the ones with the largest logits, of equal ones the lower; a "
        "weight is its p, divided by the sum of the chosen p to `renormalize`, times `scale`.",
        ints=("experts", "chosen", "renormalize"),
        floats=("scale",),
    ),
    Op(
        "expert_linear",
        21,
        ("x", "routing", "grid?"),
        "out[T·k,N] = act(x[T,K] · w[e,N,K]ᵀ), where row t·k + j is token t at its j-th expert e. Gated activations, "
        "types and a quantized w are as in linear; w has the rows of all experts, one below the other.",
        weights=("w",),
        ints=("experts", "act"),
        narrow=True,
    ),
    Op(
        "expert_sum",
        22,
        ("x", "routing", "residual?", "grid?"),
        "out[T,N] = residual + Σ_j weight[t,j] · (x[T·k,K] · w[e,N,K]ᵀ)[t·k + j], j ascending: each token's experts, "
        "weighted. x and w are as in expert_linear; residual is fp32 and may be out itself.",
        weights=("w",),
        ints=("experts",),
        in_place=(2,),
    ),
    Op("gate_rows", 23, ("x", "gate"), "out = x · sigmoid(gate[.,0]).", in_place=(0,), narrow=True),
    Op(
        "hidden",
        24,
        ("x",),
        "Hands out x[R,H] where the step asks for it: what the head multiplies, for embeddings. Rows that ask for "
        "nothing else need no logits.",
        ints=("H",),
        row_wise=False,
        output=False,
    ),
)

OPS: Final[dict[str, Op]] = {op.name: op for op in _CATALOGUE}

ACT_NONE: Final = 0
ACTIVATIONS: Final[dict[str, int]] = {"silu": 1, "gelu_tanh": 2, "gelu_erf": 3}
GATED: Final = 16  # added to an activation's code: act(gate) · up
GATE_GROUP: Final = 16  # rows of gate, then as many rows of up
PRODUCTS: Final = ("linear", "expert_linear", "expert_sum")  # ops with a matrix that their first input is multiplied by

ROPE_STYLES: Final[dict[str, int]] = {"neox": 0, "interleaved": 1}
