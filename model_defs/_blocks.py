"""What several families share: the configuration keys, projections out of one tensor, attention and gated MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dashinfer_lite.errors import ModelError
from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, RowsOf, Value

if TYPE_CHECKING:
    from dashinfer_lite.weights.folder import ModelFolder

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """config.json of a decoder-only model, checked, with its own key names; `rope` holds the normalised rope
    parameters.

    `layer_types` and `sliding_window` say what each layer sees, whichever way the file puts it.
    """

    family: ClassVar[str]
    whole_prompts: ClassVar[bool] = False  # a prompt's tokens see each other, so one step must have room for all

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    sliding_window: int | None
    layer_types: tuple[str, ...]
    rope: dict[str, Any]

    @classmethod
    def from_folder(cls, folder: ModelFolder) -> Self:
        """Reads the folder's config.json."""
        return cls.from_dict(folder.config, str(folder.path / "config.json"))

    @classmethod
    def from_dict(cls, config: read.Config, where: str = "config.json") -> Self:
        """Checks the keys of a parsed config.json; ModelError says which one is wrong and what was expected."""
        return cls(**cls._values(config, where))

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        """The fields by name; a family with more fields extends it."""
        heads = read.attention_heads(config, where=where)
        return {
            "vocab_size": read.positive_int(config, "vocab_size", where=where),
            "hidden_size": read.positive_int(config, "hidden_size", where=where),
            "intermediate_size": read.positive_int(config, "intermediate_size", where=where),
            "num_hidden_layers": read.positive_int(config, "num_hidden_layers", maximum=4096, where=where),
            "num_attention_heads": heads.query,
            "num_key_value_heads": heads.key_value,
            "head_dim": heads.size,
            "hidden_act": ACTIVATIONS[read.choice(config, "hidden_act", ACTIVATIONS, "silu", where=where)],
            "rms_norm_eps": read.positive_float(config, "rms_norm_eps", 1e-6, where=where),
            "max_position_embeddings": read.positive_int(config, "max_position_embeddings", 2048, where=where),
            "tie_word_embeddings": read.boolean(config, "tie_word_embeddings", False, where=where),
            "sliding_window": read.sliding_window(config, cls.family, where=where),
            "layer_types": read.layer_types(config, cls.family, where=where),
            "rope": read.rope_parameters(config, where=where),
        }

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, its own included; None: all."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    def rope_of(self, layer: int) -> dict[str, Any]:
        """The rope parameters of a layer; some families have one set a layer type."""
        if "rope_type" in self.rope:
            return self.rope
        kind = self.layer_types[layer]
        if kind not in self.rope:
            raise ModelError(f"rope_parameters has no entry for {kind}, the type of layer {layer}")
        parameters: dict[str, Any] = self.rope[kind]
        return parameters


def attention(
    g: Graph, x: Value, c: DecoderConfig, layer: int, *, bias: bool = False, o_bias: bool = False, qk_norm: bool = False
) -> Value:
    """Grouped-query attention with rotary positions; the scope is the layer's self_attn."""
    table = rope_table(g, c, layer)
    q, k, v = qkv(g, x, c, bias=bias)
    if qk_norm:
        q = g.head_norm(q, "q_norm", c.rms_norm_eps)
        k = g.head_norm(k, "k_norm", c.rms_norm_eps)
    y = g.attention(g.rope(q, table), g.rope(k, table), v, window=c.window(layer))
    return g.linear(y, "o_proj", c.hidden_size, bias=o_bias)


def rope_table(g: Graph, c: DecoderConfig, layer: int) -> Value:
    """The cosines and sines of a layer."""
    rope = c.rope_of(layer)
    return g.rope_table(rope, int(c.head_dim * rope["partial_rotary_factor"]), c.max_position_embeddings)


def qkv(
    g: Graph, x: Value, c: DecoderConfig, *, fused: str | None = None, by_head: bool = False, bias: bool = False
) -> tuple[Value, Value, Value]:
    """The heads of q, k and v: from q_proj, k_proj and v_proj, or from one tensor `fused` with all their rows.

    These go q, k, v; or with `by_head` q, k and v of the first head, then those of the second, and so on.
    """
    q, kv, size = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    if fused is None:
        names, counts = ("q_proj", "k_proj", "v_proj"), (q, kv, kv)
        rows: list[RowsOf] = [None] * 3
    else:
        names, counts = (fused,) * 3, (q, kv, kv)
        stops = np.cumsum(counts) * size
        rows = [(int(stop) - count * size, int(stop)) for stop, count in zip(stops, counts, strict=True)]
        if by_head:
            rows = [part.reshape(-1) for part in np.arange(3 * q * size).reshape(q, 3, size).swapaxes(0, 1)]
    heads = [
        g.linear(x, name, heads=(count, size), bias=bias, rows=part)
        for name, count, part in zip(names, counts, rows, strict=True)
    ]
    return heads[0], heads[1], heads[2]


def gated_mlp(g: Graph, x: Value, c: DecoderConfig, *, inner: int | None = None, bias: bool = False) -> Value:
    """down(act(gate(x)) · up(x)) with `inner` columns (None: intermediate_size); the scope is the layer's mlp."""
    inner = inner or c.intermediate_size
    gate = g.linear(x, "gate_proj", inner, bias=bias)
    up = g.linear(x, "up_proj", inner, bias=bias)
    return g.linear(g.act(gate, c.hidden_act) * up, "down_proj", c.hidden_size, bias=bias)


def fused_mlp(
    g: Graph,
    x: Value,
    c: DecoderConfig,
    *,
    gate_up: str = "gate_up_proj",
    down: str = "down_proj",
    bias: bool = False,
) -> Value:
    """The gated MLP with gate's rows and then up's in one tensor; the scope is the layer's mlp."""
    n = c.intermediate_size
    gate = g.linear(x, gate_up, n, rows=(0, n), bias=bias)
    up = g.linear(x, gate_up, n, rows=(n, 2 * n), bias=bias)
    return g.linear(g.act(gate, c.hidden_act) * up, down, c.hidden_size, bias=bias)
