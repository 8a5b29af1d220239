"""A program with every operation of the catalogue, and the numbers of its slots and weights."""

from __future__ import annotations

from typing import Any

from one_op import Maker

from dashinfer_lite.graph.program import KvSpec

X, H, Q, K, V, TABLE, A, G, ROWS, LOGITS, VIEW, PLANES, GRID, STATES = range(14)
SCORES, ROUTING, INNER, INNER_PLANES, INNER_GRID = range(14, 19)
WORDS, FREQUENCIES, NORM, BIAS, WIDE, HEAD, OUT, GATE_UP, LM_HEAD, SLOPES, CODES, ORDER = range(12)
GATE, EXPERTS_UP, EXPERTS_DOWN, EXPERT_CODES = range(12, 16)


def everything(info: Any) -> Maker:
    """A program with every operation, each used as it should be."""
    m = Maker(info, tokens=64, tail_rows=32, seqs=4, vocab=64, hidden=64, kv=KvSpec(2, 2, 32, "bf16", 32, 4), chosen=2)
    x, h, q, k, v, table = m.slot(64), m.slot(64, "bf16"), m.slot(128), m.slot(64), m.slot(64), m.slot(32)
    a, g, rows, logits = m.slot(128, "bf16"), m.slot(64, "bf16"), m.slot(64, "bf16", "R"), m.slot(64, rows="R")
    m.view(q, 32, 64)
    words, frequencies, norm, bias = m.matrix(64, 64, "bf16", kind="table"), m.vector(16), m.vector(64), m.vector(64)
    wide, head, out = m.matrix(128, 64, "bf16"), m.vector(32), m.matrix(64, 128, "bf16", group=32)
    gate_up, lm_head, slopes = m.matrix(128, 64, "bf16"), m.matrix(64, 64, "bf16"), m.vector(4)
    codes, _ = m.quantized(64, 128, bits=4, group=48, scales="f16"), m.vector(128)
    m.op("embed", (), (x,), (words,), scale=1)
    m.op("rope_table", (), (table,), (frequencies, -1), h=16, attention=1)
    m.op("rms_norm", (x,), (h,), (norm,), cols=64, eps=1e-5)
    m.op("layer_norm", (x,), (h,), (norm, bias), cols=64, eps=1e-5)
    m.op("linear", (h,), (q,), (wide,))
    m.op("head_norm", (q,), (q,), (head,), heads=4, D=32, eps=1e-5)
    m.op("rope", (q, table), (q,), heads=4, D=32, rotary=32)
    m.op("scale", (x,), (k,), factor=2)
    m.op("scale", (x,), (v,), factor=0.5)
    m.op("kv_write", (k, v), layer=1, Hkv=2, D=32)
    m.op("rope_kv", (q, k, v, table), (q,), (head, head), layer=0, Hq=4, Hkv=2, D=32, rotary=32, eps=1e-5)
    m.op("attention", (q,), (a,), (slopes, slopes), layer=0, Hq=4, Hkv=2, D=32, window=7, scale=0.2)
    m.op("linear", (a, x), (x,), (out, bias))
    planes, grid = m.quantize(q, 128, group=48)
    states = m.slot(64, rows="R")
    m.op("linear", (planes, x, grid), (x,), (codes, bias))
    m.op("linear", (h,), (g,), (gate_up,), act=17)
    m.op("act", (x,), (x,), act=1)
    m.op("mul", (x, x), (x,))
    m.op("add", (x, g), (x,))
    m.op("softcap", (x,), (x,), cap=30)
    m.op("cast", (x,), (h,))
    scores, routing, inner = m.slot(5), m.slot(4), m.slot(32, rows="E")
    gate, up = m.matrix(5, 64, "bf16"), m.matrix(5 * 64, 64, "bf16")
    down, codes = m.matrix(5 * 64, 32), m.quantized(5 * 64, 32)
    m.op("linear", (h,), (scores,), (gate,))
    m.op("route", (scores,), (routing,), experts=5, chosen=2, renormalize=1, scale=1)
    m.op("expert_linear", (h, routing), (inner,), (up,), experts=5, act=17)
    m.op("expert_sum", (inner, routing, x), (x,), (down,), experts=5)
    planes, grid = m.quantize(inner, 32)
    m.op("expert_sum", (planes, routing, x, grid), (x,), (codes,), experts=5)
    m.op("gate_rows", (x, scores), (x,))
    m.tail_op("gather_rows", (h,), (rows,))
    m.tail_op("cast", (rows,), (states,))
    m.tail_op("hidden", (states,), H=64)
    m.tail_op("linear", (rows,), (logits,), (lm_head,))
    m.tail_op("sample", (logits,), V=64)
    return m
