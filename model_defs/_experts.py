"""What the families with mixtures of experts share: the keys of Qwen's, and the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dashinfer_lite.graph import config as read
from dashinfer_lite.graph.builder import Graph, Value
from dashinfer_lite.model_defs._config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class QwenMoeConfig(DecoderConfig):
    """A layer i has experts where num_experts > 0, (i + 1) % decoder_sparse_step = 0 and mlp_only_layers lacks i.

    The other layers have an MLP of `intermediate_size`. The newest files call num_experts num_local_experts.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...]

    @classmethod
    def _values(cls, config: read.Config, where: str) -> dict[str, Any]:
        local = read.natural_int(config, "num_local_experts", 0, maximum=MAX_EXPERTS, where=where)
        experts = read.natural_int(config, "num_experts", local or None, maximum=MAX_EXPERTS, where=where)
        return super()._values(config, where) | {
            "num_experts": experts,
            "num_experts_per_tok": read.positive_int(
                config, "num_experts_per_tok", maximum=experts or MAX_EXPERTS, where=where
            ),
            "moe_intermediate_size": read.positive_int(config, "moe_intermediate_size", where=where),
            "norm_topk_prob": read.boolean(config, "norm_topk_prob", False, where=where),
            "decoder_sparse_step": read.positive_int(config, "decoder_sparse_step", 1, where=where),
            "mlp_only_layers": read.natural_ints(config, "mlp_only_layers", (), where=where),
        }

    def has_experts(self, layer: int) -> bool:
        """Whether a layer is one of experts."""
        step = self.decoder_sparse_step
        return self.num_experts > 0 and (layer + 1) % step == 0 and layer not in self.mlp_only_layers


MAX_EXPERTS = 1024


def expert_mlp(
    g: Graph,
    x: Value,
    experts: int,
    chosen: int,
    inner: int,
    hidden_act: str,
    *,
    renormalize: bool,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Value:
    """Σ over a token's experts of weight · down(act(gate(x)) · up(x)).

    The scope holds `gate`, the router, and `experts`, whose gate, up and down matrices have these `names`.
    """
    routing = g.route(g.linear(x, "gate", experts), chosen, renormalize=renormalize)
    gate, up, down = (f"experts.{{}}.{name}" for name in names)
    h = g.act(g.expert_linear(x, routing, gate, inner), hidden_act) * g.expert_linear(x, routing, up, inner)
    return g.expert_sum(h, routing, down, x.cols)
