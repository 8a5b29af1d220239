"""What a program must at least read and compute: the numerators of the roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashinfer_lite.graph.plan import kv_token_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dashinfer_lite.graph.program import Instr, Program, WeightSpec


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes and operations of a program.

    linear_bytes     packed matrices that every step reads, the head included
    packed_bytes     all weights, with embedding tables and vectors
    matmul_weights   elements of the body's matrices that a token is multiplied with, without padding
    head_weights     elements of the head
    kv_token_bytes   keys and values of one token in all layers
    pair_operations  operations of attention for one query and one key in all layers
    step_tokens      most tokens of a step
    expert_bytes     packed matrices of experts, of which a step reads those of the experts that its tokens chose
    experts          how many experts a layer has
    chosen           how many of them a token chooses
    """

    linear_bytes: int
    packed_bytes: int
    matmul_weights: int
    head_weights: int
    kv_token_bytes: int
    pair_operations: int
    step_tokens: int
    expert_bytes: int = 0
    experts: int = 1
    chosen: int = 1

    def step_bytes(self, tokens: int) -> float:
        """Bytes of weights that a step reads; of experts what is to be expected where tokens choose at random."""
        untouched = (1 - self.chosen / self.experts) ** tokens
        return self.linear_bytes + self.expert_bytes * (1 - untouched)

    def prefill_operations(self, tokens: int) -> float:
        """Operations of a prompt: 2 a matrix element and token, causal attention, one row of the head."""
        pairs = tokens * (tokens + 1) // 2
        return 2.0 * self.matmul_weights * tokens + float(self.pair_operations) * pairs + 2.0 * self.head_weights

    def decode_operations(self, sequences: int, context: float) -> float:
        """Operations of one step that generates a token for each of some sequences."""
        return sequences * (2.0 * (self.matmul_weights + self.head_weights) + self.pair_operations * context)

    def prefill_bytes(self, tokens: int) -> float:
        """Bytes that a prompt reads: the weights once a step, and the earlier steps' keys and values."""
        steps = -(-tokens // self.step_tokens)
        earlier = self.step_tokens * steps * (steps - 1) // 2
        last = tokens - (steps - 1) * self.step_tokens
        weights = (steps - 1) * self.step_bytes(self.step_tokens) + self.step_bytes(last)
        return weights + float(self.kv_token_bytes) * earlier

    def decode_bytes(self, sequences: int, context: float) -> float:
        """Bytes that such a step reads: the weights once, and every sequence's keys and values."""
        return self.step_bytes(sequences) + sequences * context * self.kv_token_bytes


def cost_of(program: Program, head_align: int) -> Cost:
    """Count a program's bytes and operations; `head_align` is the device's padding of a head."""
    body, tail = _matrices(program, program.body), _matrices(program, program.tail)
    expert_code = [instr for instr in program.body if instr.op in ("expert_linear", "expert_sum")]
    of_experts = [program.weights[instr.weights[0]] for instr in expert_code]
    experts = max((instr.ints[0] for instr in expert_code), default=1)
    chosen = program.limits.experts_per_token or 1
    kv = program.kv
    head_size = -(-kv.head_size // head_align) * head_align
    pairs = 0
    for instr in program.body:
        if instr.op == "attention":
            _, query_heads, _, columns, _ = instr.ints
            pairs += 4 * query_heads * columns
    return Cost(
        linear_bytes=sum(weight_bytes(weight) for weight in {id(w): w for w in [*body, *tail]}.values()),
        packed_bytes=sum(weight_bytes(weight) for weight in program.weights),
        matmul_weights=sum(map(weight_elements, body)) + sum(map(weight_elements, of_experts)) * chosen // experts,
        head_weights=sum(weight_elements(weight) for weight in tail),
        kv_token_bytes=kv.layers * kv.heads * kv_token_bytes(kv.dtype, head_size),
        pair_operations=pairs,
        step_tokens=program.limits.max_tokens,
        expert_bytes=sum(map(weight_bytes, of_experts)),
        experts=experts,
        chosen=chosen,
    )


def weight_bytes(weight: WeightSpec) -> int:
    """Bytes of a weight as the device keeps it, with its scales and zero points."""
    if weight.kind == "vector":
        return 4 * weight.n
    return weight.n * (_bytes(weight.k_padded, weight.dtype) + weight.groups * _grid_bytes(weight))


def weight_elements(weight: WeightSpec) -> int:
    """Elements of a matrix, without padding."""
    return int((weight.part_index >= 0).sum()) * weight.k


def _matrices(program: Program, code: Iterable[Instr]) -> list[WeightSpec]:
    return [program.weights[instr.weights[0]] for instr in code if instr.op == "linear"]


def _bytes(count: int, dtype: str) -> int:
    return count // 2 if dtype == "u4" else count * {"u8": 1, "f16": 2, "bf16": 2, "f32": 4}[dtype]


def _grid_bytes(weight: WeightSpec) -> int:
    """A scale and a 16-bit zero point."""
    return _bytes(1, weight.scale_dtype) + 2
