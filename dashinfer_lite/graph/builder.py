"""The builder that model definitions call: it records a forward pass once, as a Trace.

Names are the checkpoint's: `linear(x, "q_proj", …)` inside `scope("model.layers.0.self_attn")` reads
`model.layers.0.self_attn.q_proj.weight`. Misuse is a ValueError, raised where the model definition makes the mistake.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dashinfer_lite.graph.experts import ExpertOps
from dashinfer_lite.graph.ops import ACT_NONE, ACTIVATIONS, ROPE_STYLES
from dashinfer_lite.graph.program import PrefixRule
from dashinfer_lite.graph.rope_frequencies import rope_frequencies
from dashinfer_lite.graph.trace import Columns, KvShape, Node, Source, Trace, ValueType, Weight

if TYPE_CHECKING:
    from dashinfer_lite.graph.program import DType

# Rows of a fused tensor: all, [start, stop), or one row number for each output column.
RowsOf = tuple[int, int] | np.ndarray | None

MAX_HEAD: Final = 256
SIGNIFICANT_BITS: Final = {"f32": 24, "f16": 11, "bf16": 8}


class Value:
    """A value of the recorded forward pass. `a + b`, `a * b` and `a * 2.0` record the operation."""

    __slots__ = ("graph", "id", "type")

    def __init__(self, graph: Graph, id: int, type: ValueType) -> None:
        self.graph = graph
        self.id = id
        self.type = type

    @property
    def cols(self) -> int:
        """Columns, without padding."""
        return self.type.cols

    @property
    def heads(self) -> tuple[int, int]:
        """(count, D) of a value made of attention heads."""
        if self.type.heads is None:
            raise ValueError("the value is not made of heads; give its linear heads=(count, D)")
        return self.type.heads

    def __add__(self, other: Value) -> Value:
        return self.graph.add(self, other)

    def __mul__(self, other: Value | float) -> Value:
        return self.graph.mul(self, other) if isinstance(other, Value) else self.graph.scale(self, other)


class Graph(ExpertOps):
    """Records the operations that a model definition asks for.

    `dtype` is the type of its matrices; where others compute in that type throughout, a constant must be rounded to it.
    """

    def __init__(self, dtype: DType = "f32") -> None:
        self.dtype = dtype
        self._prefix = ""
        self._nodes: list[Node] = []
        self._kv: KvShape | None = None
        self._tables: dict[str, Value] = {}
        self._vocab_size = self._hidden_size = 0
        self._notes: dict[str, str] = {}
        self._prefix_rule: PrefixRule | None = None

    @contextmanager
    def scope(self, prefix: str) -> Iterator[None]:
        """Puts `prefix.` before every tensor name inside."""
        outer = self._prefix
        self._prefix = f"{outer}{prefix}."
        try:
            yield
        finally:
            self._prefix = outer

    # ---- the ends of a model -----------------------------------------------------------------------------------------

    def prefix(self, begin: int, gaps: tuple[int, ...]) -> None:
        """Prompts are laid out by this PrefixRule, in two rows of positions; else tokens are numbered and causal."""
        self._prefix_rule = PrefixRule(begin, gaps)

    def embed(self, name: str, vocab: int, hidden: int, *, scale: float = 1.0) -> Value:
        """x[T,H]: the rows of `name`.weight [vocab, hidden] for the step's tokens.

        A row for which the step brings along a hidden state (of an image, of audio) is that state.
        """
        if self._hidden_size:
            raise ValueError("a model embeds its tokens once")
        self._hidden_size = hidden
        module = self._prefix + name
        table = Weight("table", module, (Source(f"{module}.weight", Columns(vocab)),))
        return self._add("embed", (), ValueType("T", (Columns(hidden),)), (table,), scale=scale)

    def logits(
        self,
        x: Value,
        name: str,
        vocab: int,
        *,
        tied: str | None = None,
        bias: bool = False,
        scale: float = 1.0,
        softcap: float = 0.0,
        normalize: bool = False,
    ) -> Value:
        """The head: hidden states and logits of the rows that the step asks for, and the draw of their tokens.

        `tied` names the embedding (with its full prefix) whose table is the head; then `name` is not read. Logits are
        multiplied by `scale`, then capped.
        """
        if self._vocab_size:
            raise ValueError("a model has one head")
        self._vocab_size = vocab
        self._notes["head"] = self._prefix + name if tied is None else tied
        rows = self._add("gather_rows", (x,), replace(x.type, rows="R"))
        self._effect("hidden", (rows,), H=x.cols)
        if tied is None:
            y = self.linear(rows, name, vocab, bias=bias, normalize=normalize)
        else:
            self._notes["tied"] = self._prefix + name
            head = self._tie(tied, vocab, x)
            y = self._add("linear", (rows,), ValueType("R", (Columns(vocab),)), (head,), act=ACT_NONE)
        if scale != 1.0:
            y = self.scale(y, scale)
        if softcap:
            y = self.softcap(y, softcap)
        self._effect("sample", (y,), V=vocab)
        return y

    # ---- matrices and norms ----------------------------------------------------------------------------------------

    def linear(
        self,
        x: Value,
        name: str,
        n: int | None = None,
        *,
        heads: tuple[int, int] | None = None,
        bias: bool = False,
        rows: RowsOf = None,
        normalize: bool = False,
    ) -> Value:
        """y[.,N] = x[.,K] · `name`.weight[N,K]ᵀ (+ `name`.bias).

        `heads=(count, D)` makes y a value of heads (then n may be left out). `rows` takes part of a fused tensor:
        (start, stop), or an array with one row number for each column of y (per-head interleaved q, k, v).
        `normalize` scales each row of the weight to length 1.
        """
        columns = Columns(heads[1], heads[0], "heads") if heads else Columns(n or 0)
        if columns.width <= 0 or (n is not None and n != columns.width):
            raise ValueError(f"{self._prefix}{name}: {n} columns, heads {heads}")
        if heads and heads[1] > MAX_HEAD:
            raise ValueError(f"{self._prefix}{name}: heads of {heads[1]} columns, at most {MAX_HEAD} are possible")
        if (isinstance(rows, tuple) and rows[1] - rows[0] != columns.width) or (
            isinstance(rows, np.ndarray) and rows.shape != (columns.width,)
        ):
            raise ValueError(f"{self._prefix}{name}: rows do not give {columns.width} columns")
        module = self._prefix + name
        weight = Weight("matrix", module, (Source(f"{module}.weight", columns, rows),), normalize=normalize)
        weights = [weight]
        if bias:
            weights.append(Weight("vector", f"{module}.bias", (Source(f"{module}.bias", columns, rows),)))
        return self._add("linear", (x,), ValueType(x.type.rows, (columns,)), tuple(weights), act=ACT_NONE)

    def rms_norm(self, x: Value, name: str, eps: float, *, offset: float = 0.0) -> Value:
        """x / sqrt(mean(x²) + eps) · (`name`.weight + offset)."""
        return self._add(
            "rms_norm", (x,), x.type, (self._vector(f"{name}.weight", x.type, offset),), cols=x.cols, eps=eps
        )

    def layer_norm(self, x: Value, name: str, eps: float, *, bias: bool = True) -> Value:
        """(x - mean) / sqrt(var + eps) · `name`.weight (+ `name`.bias)."""
        weights = [self._vector(f"{name}.weight", x.type)] + ([self._vector(f"{name}.bias", x.type)] if bias else [])
        return self._add("layer_norm", (x,), x.type, tuple(weights), cols=x.cols, eps=eps)

    def head_norm(self, x: Value, name: str, eps: float, *, offset: float = 0.0) -> Value:
        """RMS norm of every head of x with the one weight `name`.weight[D]."""
        count, size = x.heads
        one_head = ValueType(x.type.rows, (Columns(size, 1, "heads"),))
        return self._add(
            "head_norm", (x,), x.type, (self._vector(f"{name}.weight", one_head, offset),), heads=count, D=size, eps=eps
        )

    # ---- attention -------------------------------------------------------------------------------------------------

    def rope_table(
        self, rope: Mapping[str, Any], rotary_dims: int, max_position_embeddings: int, *, logn: int = 0
    ) -> Value:
        """cos | sin [T, rotary_dims] of the step's positions; equal arguments give the same value.

        `rope` is a dict of `graph.config.rope_parameters`, or one with a rope_type that only model definitions name:
        "prompt_ntk" or "two_axes". Its `mrope_section` asks for several position rows. What is rotated by the table of
        `logn` tokens is also multiplied by log(position + 1) / log(logn) from that position on.
        """
        key = f"{sorted(rope.items(), key=lambda item: item[0])} {rotary_dims} {max_position_embeddings} {logn}"
        if key not in self._tables:
            self._tables[key] = self._rope_table(dict(rope), rotary_dims, max_position_embeddings, logn)
        return self._tables[key]

    def rope(self, x: Value, table: Value, *, interleaved: bool = False) -> Value:
        """Rotates the first `table.cols` columns of every head, as halves or as interleaved pairs."""
        count, size = x.heads
        if table.cols > size:
            raise ValueError(f"cannot rotate {table.cols} columns of heads of {size}")
        style = ROPE_STYLES["interleaved" if interleaved else "neox"]
        return self._add("rope", (x, table), x.type, heads=count, D=size, rotary=table.cols, style=style)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float = 0.0,
        alibi: np.ndarray | None = None,
        sinks: str | None = None,
    ) -> Value:
        """Stores k and v in the cache and attends to it; each call is the next layer of the cache.

        scale defaults to D^-0.5; `window` counts the visible keys, the own one included; `alibi` are the slopes [Hq];
        `sinks` names a tensor [Hq].
        """
        (q_heads, size), (kv_heads, k_size) = q.heads, k.heads
        if k_size != size or v.heads != k.heads or q_heads % kv_heads:
            raise ValueError(f"attention: heads of q, k, v are {q.heads}, {k.heads}, {v.heads}")
        layer = self._kv_layer(kv_heads, size)
        self._effect("kv_write", (k, v), layer=layer, Hkv=kv_heads, D=size)
        slopes = Weight("vector", "alibi", value=np.asarray(alibi, np.float32)) if alibi is not None else None
        sink = self._vector(sinks, ValueType("T", (Columns(q_heads),))) if sinks is not None else None
        return self._add(
            "attention",
            (q,),
            q.type,
            (slopes, sink),
            layer=layer,
            Hq=q_heads,
            Hkv=kv_heads,
            D=size,
            window=window or 0,
            scale=size**-0.5 if scale is None else scale,
            softcap=softcap,
        )

    def rounded(self, value: float) -> float:
        """A constant as the model's dtype holds it, to nearest even."""
        mantissa, exponent = math.frexp(value)
        bits = SIGNIFICANT_BITS[self.dtype]
        return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)

    # ---- elementwise -----------------------------------------------------------------------------------------------

    def act(self, x: Value, kind: str) -> Value:
        """act(x); `kind` is silu, gelu_tanh or gelu_erf."""
        if kind not in ACTIVATIONS:
            raise ValueError(f"activation {kind!r} is not one of {', '.join(ACTIVATIONS)}")
        return self._add("act", (x,), x.type, act=ACTIVATIONS[kind])

    def silu(self, x: Value) -> Value:
        return self.act(x, "silu")

    def mul(self, a: Value, b: Value) -> Value:
        return self._add("mul", (a, b), self._same_type("mul", a, b))

    def add(self, a: Value, b: Value) -> Value:
        return self._add("add", (a, b), self._same_type("add", a, b))

    def scale(self, x: Value, factor: float) -> Value:
        return self._add("scale", (x,), x.type, factor=factor)

    def softcap(self, x: Value, cap: float) -> Value:
        """cap · tanh(x / cap)."""
        return self._add("softcap", (x,), x.type, cap=cap)

    # ---- the result ------------------------------------------------------------------------------------------------

    def trace(self) -> Trace:
        """What was recorded."""
        if not self._hidden_size or not self._vocab_size:
            raise ValueError("a model needs an embedding and a head")
        trace = Trace(
            tuple(self._nodes),
            self._kv or KvShape(0, 1, 1),
            self._vocab_size,
            self._hidden_size,
            dict(self._notes),
            self._prefix_rule,
        )
        trace.check()
        return trace

    def _add(
        self,
        op: str,
        inputs: tuple[Value, ...],
        type: ValueType,
        weights: tuple[Weight | None, ...] = (),
        **attrs: float,
    ) -> Value:
        if any(value.graph is not self for value in inputs):
            raise ValueError(f"{op}: an input belongs to another graph")
        while weights and weights[-1] is None:
            weights = weights[:-1]
        node = Node(len(self._nodes), op, tuple(value.id for value in inputs), type, weights, attrs)
        self._nodes.append(node)
        return Value(self, node.id, type)

    def _producer(self, value: Value) -> Node:
        return self._nodes[value.id]

    def _effect(self, op: str, inputs: tuple[Value, ...], **attrs: float) -> None:
        self._nodes.append(Node(len(self._nodes), op, tuple(value.id for value in inputs), attrs=attrs))

    def _vector(self, tensor: str, type: ValueType, offset: float = 0.0) -> Weight:
        name = self._prefix + tensor
        if len(type.parts) != 1:
            raise ValueError(f"{name}: the value has several parts")
        return Weight("vector", name, (Source(name, type.parts[0]),), offset=offset)

    def _tie(self, module: str, vocab: int, x: Value) -> Weight:
        """Turns the embedding's table into the matrix that both ends read."""
        for at, node in enumerate(self._nodes):
            table = node.weight(0)
            if node.op == "embed" and table is not None and table.name == module:
                if table.sources[0].columns.width != vocab or x.type != node.type:
                    raise ValueError(f"a head [{vocab}, {x.cols}] cannot be tied to {module}")
                weight = replace(table, kind="matrix")
                self._nodes[at] = replace(node, weights=(weight,))
                return weight
        raise ValueError(f"the head is tied to {module!r}, which is not the embedding")

    def _rope_table(self, rope: dict[str, Any], rotary_dims: int, max_position_embeddings: int, logn: int) -> Value:
        frequencies = rope_frequencies(rope, rotary_dims, max_position_embeddings)
        half = rotary_dims // 2
        sections = [int(section) for section in rope.get("mrope_section") or (0, 0, 0)]
        if any(sections) and sum(sections) != half:
            raise ValueError(f"mrope_section {sections} does not add up to {half} frequencies")
        weights = [Weight("vector", "inv_freq", value=np.asarray(frequencies.inv_freq, np.float32))]
        if frequencies.long_inv_freq is not None:
            weights.append(Weight("vector", "long_inv_freq", value=np.asarray(frequencies.long_inv_freq, np.float32)))
        return self._add(
            "rope_table",
            (),
            ValueType("T", (Columns(rotary_dims),)),
            tuple(weights),
            kind=int(frequencies.kind),
            h=half,
            original=frequencies.original_max,
            section0=sections[0],
            section1=sections[1],
            section2=sections[2],
            interleaved=int(bool(rope.get("mrope_interleaved"))),
            logn=logn,
            attention=frequencies.attention_factor,
            scaling=frequencies.factor,
            theta=frequencies.theta,
        )

    def _kv_layer(self, heads: int, size: int) -> int:
        kv = self._kv or KvShape(0, heads, size)
        if (kv.heads, kv.head_size) != (heads, size):
            raise ValueError(
                f"layer {kv.layers} has {heads} KV heads of {size}, earlier ones {kv.heads} of {kv.head_size}"
            )
        self._kv = replace(kv, layers=kv.layers + 1)
        return kv.layers

    def _same_type(self, op: str, a: Value, b: Value) -> ValueType:
        if a.type != b.type:
            raise ValueError(f"{op}: the operands differ in shape: {a.type} and {b.type}")
        return a.type
