"""Which matrices are multiplied in integers, and how: the quantization policy.

Model definitions know nothing of it: `annotate` marks the matrices of a recorded trace before the passes run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Self

from dashinfer_lite.errors import ModelError, RequestError
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.trace import Node, Trace, Weight
from dashinfer_lite.weights.grid import Grid

Role = Literal["linear", "head", "router"]

GROUPS: Final = (32, 64, 128, 256, 512)
ALIASES: Final = {"int8": "a16w8", "int4": "a16w4"}
# Mode → bits of the weights, int8 planes of the activations.
MODES: Final = {"a16w8": (8, 2), "a16w4": (4, 2), "a8w8": (8, 1)}
_PATTERN: Final = re.compile(r"(a\d+w\d+)(?:-g(\d+))?")


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one matrix is multiplied: its grid, and the int8 planes of its activations (2: 16 bit, 1: 8 bit).

    `stored`: the checkpoint holds the codes; else they are made while loading.
    """

    grid: Grid
    planes: int = 2
    stored: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "a16w8", "a16w4-g128", "int8" and the like; RequestError for anything else."""
        found = _PATTERN.fullmatch(ALIASES.get(text, text)) if isinstance(text, str) else None
        if found is None or found[1] not in MODES or (found[2] is not None and int(found[2]) not in GROUPS):
            modes = ", ".join((*MODES, *ALIASES))
            raise RequestError(
                f"quant is {text!r:.40}; it must be one of {modes}, and may end in -g{' or -g'.join(map(str, GROUPS))}"
            )
        bits, planes = MODES[found[1]]
        group = int(found[2] or 0)
        return cls(Grid(bits, group, "bf16" if group else "f32"), planes)

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def group(self) -> int:
        return self.grid.group

    def __str__(self) -> str:
        return f"a{8 * self.planes}w{self.bits}" + (f"-g{self.group}" if self.group else "")


HEAD: Final = QuantSpec(Grid(8))


@dataclass(frozen=True)
class QuantPolicy:
    """A spec for each matrix by its module's name, or None for one that stays as it is.

    linear      for every matrix that nothing else is said of
    head        for the LM head; a tied embedding gives its rows from there
    overrides   (name pattern, spec): the first pattern that fits a name counts
    grids       matrices that the checkpoint holds as codes: they stay on their grid, the rest decides the activations,
                and linears that the checkpoint left alone stay alone

    Norms, routers, biases and an embedding of its own are never quantized.
    """

    linear: QuantSpec | None = None
    head: QuantSpec | None = None
    overrides: tuple[tuple[str, QuantSpec | None], ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, text: str | None, *, overrides: Mapping[str, str | None] | None = None, head: str | None = None
    ) -> Self:
        """Makes a policy of what a user writes; RequestError for what it cannot be.

        `text` is the mode of all linears: "a16w8" ("int8"), "a16w4" ("int4"), "a8w8", with or without a group such as
        "-g128"; None or "none" for no linear. `overrides` are modes by name pattern, as in {"*.down_proj": "a16w8",
        "model.layers.0.*": None}. `head` is "int8" or "bf16" (as it is); None: "int8" where there is a text.
        """
        if head not in (None, "int8", "bf16"):
            raise RequestError(f"head is {head!r:.40}; it must be int8 or bf16")
        linear = _optional(text)
        return cls(
            linear,
            HEAD if head == "int8" or (head is None and linear is not None) else None,
            tuple((pattern, _optional(mode)) for pattern, mode in (overrides or {}).items()),
        )

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Self:
        """Reads `describe` back; ModelError for what it cannot have written."""
        overrides = values.get("overrides", {})
        if not isinstance(overrides, dict):
            raise ModelError(f"overrides is {overrides!r:.40}; expected an object of modes by name pattern")
        try:
            return cls.parse(values.get("quant"), overrides=overrides, head=values.get("head"))
        except RequestError as error:
            raise ModelError(f"quantization_config: {error}") from None

    def describe(self) -> dict[str, Any]:
        """The arguments of `parse` as plain JSON values."""
        return {
            "quant": str(self.linear) if self.linear else "none",
            "head": "int8" if self.head else "bf16",
            "overrides": {pattern: str(spec) if spec else None for pattern, spec in self.overrides},
        }

    def with_grids(self, grids: Mapping[str, Grid]) -> Self:
        """The policy for a checkpoint that holds these matrices as codes; RequestError for a mode of other bits."""
        if self.linear is not None and all(grid.bits != self.linear.bits for grid in grids.values()):
            module, grid = next(iter(grids.items()))
            raise RequestError(
                f"quant is {self.linear}, but the folder holds {module} in {grid.bits} bits; "
                "leave quant out, or give one with as many bits"
            )
        return replace(self, grids=grids)

    def of(self, module: str, role: Role = "linear") -> QuantSpec | None:
        """What happens to a matrix, by the name of its module such as "model.layers.0.mlp.down_proj"."""
        if module in self.grids:
            asked, grid = self._asked(module, role), self.grids[module]
            planes = asked.planes if asked is not None and asked.bits == grid.bits else 2
            return QuantSpec(grid, planes, stored=True)
        return None if self.grids and role == "linear" else self._asked(module, role)

    def _asked(self, module: str, role: Role) -> QuantSpec | None:
        if role == "router":
            return None
        for pattern, spec in self.overrides:
            if fnmatchcase(module, pattern):
                return spec
        return self.head if role == "head" else self.linear

    def __bool__(self) -> bool:
        return bool(self.linear or self.head or self.overrides or self.grids)

    def __str__(self) -> str:
        """The mode of most linears."""
        if not self.grids:
            return str(self.linear) if self.linear else "none"
        specs = [str(self.of(module)) for module in self.grids]
        return max(specs, key=specs.count)


def annotate(trace: Trace, policy: QuantPolicy | None) -> Trace:
    """Puts its spec on each matrix that the policy quantizes."""
    if not policy:
        return trace
    head = trace.notes.get("head")
    decisions = {node.inputs[-1] for node in trace.nodes if node.op in ("route", "gate_rows")}
    marked: dict[int, Weight] = {}

    def with_spec(weight: Weight, node: Node) -> Weight:
        # Two nodes share the matrix of a tied head, and still do afterwards.
        if id(weight) not in marked:
            role: Role = "router" if node.id in decisions else "head" if weight.name == head else "linear"
            marked[id(weight)] = replace(weight, quant=_common_spec(weight, policy, role))
        return marked[id(weight)]

    def with_specs(node: Node) -> Node:
        if not any(weight is not None and weight.kind == "matrix" for weight in node.weights):
            return node
        return replace(
            node,
            weights=tuple(with_spec(each, node) if each and each.kind == "matrix" else each for each in node.weights),
        )

    return trace.with_nodes([with_specs(node) for node in trace.nodes])


def matrix_specs(model_fn: Callable[[Graph, Any], object], config: Any, policy: QuantPolicy) -> dict[str, QuantSpec]:
    """Module → spec, for the matrices of a model that the policy quantizes, in the model's order.

    The head stands under the name of the embedding where both are tied.
    """
    graph = Graph()
    model_fn(graph, config)
    weights = [weight for node in annotate(graph.trace(), policy).nodes for weight in node.weights]
    found = [weight for weight in weights if weight is not None and weight.quant is not None]
    return {module: weight.quant for weight in found for module in weight.modules if weight.quant is not None}


def _common_spec(weight: Weight, policy: QuantPolicy, role: Role) -> QuantSpec | None:
    """The spec of all modules of a matrix.

    Where a folder holds the experts of a layer on grids that differ, they are computed with as numbers.
    """
    specs = {policy.of(module, role) for module in weight.modules}
    if len(specs) == 1:
        return specs.pop()
    if any(spec is not None and spec.stored for spec in specs):
        return None
    raise RequestError(f"all of {weight.name} must be quantized alike; the overrides give {len(specs)} modes")


def _optional(text: str | None) -> QuantSpec | None:
    return None if text is None or text == "none" else QuantSpec.parse(text)
