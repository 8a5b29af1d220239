"""A template engine for templates that nobody has read: jinja2's sandbox with a bound on work, memory and output.

jinja2's own sandbox keeps a template away from Python's internals. It does not keep it from running for ever or from
filling the memory, so here every operation is charged to a budget before it runs:

* a value that is walked (looped over, filtered, compared, joined, printed) costs its size: a unit for each element,
  nested ones included where the operation looks at them, and one for every 128 characters;
* every run through the body of a loop or macro costs a unit for each 8 of its syntax nodes;
* every call of a macro, method, filter or test costs a few units, which bounds recursion of every kind;
* operations whose result can be much larger than their operands (`*`, `**`, `%`, `replace`, `join`, `indent`, `format`)
  are refused when they would make more than `MAX_TEXT` characters;
* only the filters, methods and globals of `sandbox_rules` can be used, each about linear in its operands or charged
  for what it is.

`MAX_WORK` units are a few seconds of the worst template; real ones use some hundred units a message.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Environment, TemplateError, TemplateRuntimeError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from . import sandbox_rules as rules
from .sandbox_rules import MAX_TEXT

MAX_WORK = 1_000_000
"""Units of work a rendering may use."""

MAX_INTEGER_BITS = 4096

CHARS_A_UNIT = 128

UNITS_A_CALL = 4

NODES_A_UNIT = 8

COMPARISONS_A_UNIT = 1024


class TooCostly(TemplateRuntimeError):
    """The template asks for more work or text than a rendering may use."""


class Budget:
    """The work that a rendering may still do."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def charge(self, units: int) -> None:
        """Take units of work from the budget; TooCostly once it is used up."""
        self._left -= units
        if self._left < 0:
            raise TooCostly(f"it does more than {MAX_WORK} units of work")

    def text(self, length: int) -> None:
        """Charge a text; TooCostly where it is longer than `MAX_TEXT` characters."""
        if length > MAX_TEXT:
            raise TooCostly(f"it makes a text of more than {MAX_TEXT} characters")
        self.charge(length // CHARS_A_UNIT)

    def elements(self, value: Any) -> None:
        """Charge a value whose elements are walked but not looked into."""
        self.charge(1 + _length(value))

    def copied(self, value: Any) -> None:
        """Charge a value that is copied in one go: a string by its characters, a list by its elements."""
        if isinstance(value, str):
            self.text(len(value))
        else:
            self.elements(value)

    def weigh(self, value: Any) -> int:
        """Charge a value that is looked at as a whole, and return about how many characters it has when printed.

        It is walked however deep it is, and a list that is in it twice counts twice, as it would for any reader.
        """
        stack, size = [value], 0
        while stack:
            item = stack.pop()
            self.charge(1)
            size += 32
            if isinstance(item, str | bytes):
                size += len(item)
                self.text(len(item))
            elif isinstance(item, Namespace):
                stack.append(item._Namespace__attrs)
            elif isinstance(item, Mapping):
                self.charge(2 * len(item))
                stack += item.keys()
                stack += item.values()
            elif isinstance(item, range):
                self.elements(item)
            elif isinstance(item, Iterable) and not isinstance(item, Undefined | LoopContext | Iterator):
                self.elements(item)
                stack += item
        return size


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering or one compilation: its budget lives as long as it does."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=_print,
            optimized=False,  # nothing is computed at compile time
            cache_size=0,
        )
        self.budget = budget = Budget()
        charges: list[tuple[Iterable[str], Callable[[Any], Any]]] = [
            (rules.FREE_FILTERS, _nothing),
            (rules.WALKING_FILTERS, budget.elements),
            (rules.WHOLE_FILTERS, budget.weigh),
        ]
        known: dict[str, Any] = {**self.filters, "tojson": _tojson}
        self.filters = {name: self._charged(name, known[name], charge) for names, charge in charges for name in names}
        self.filters |= {EACH: _passing(budget.elements), COPY: _passing(budget.copied), WHOLE: _passing(budget.weigh)}
        self.filters[TICK] = _passing(budget.charge)
        tests: dict[str, Any] = {**self.tests}
        for name, test in tests.items():
            self.tests[name] = self._charged(name, test, budget.weigh if name in rules.WHOLE_TESTS else _nothing)
        self.globals = {"range": safe_range, "dict": dict, "namespace": Namespace}
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        self._functions = list(self.globals.values())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Charges().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template may call, after charging it."""
        budget = __self.budget
        budget.charge(UNITS_A_CALL + len(args) + len(kwargs))
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, LoopContext):  # a recursive loop goes down
            budget.elements(args[0] if args else ())
        elif isinstance(owner, LoopContext) or any(__obj is function for function in __self._functions):
            budget.weigh([args, kwargs])
        elif isinstance(owner, str | dict | list | tuple):
            __self._charge_method(owner, __obj.__name__, args, kwargs)
        elif not isinstance(__obj, Macro | BlockReference | Undefined) and not hasattr(__obj, CHARGED):
            raise SecurityError(f"a template cannot call {type(__obj).__name__!r} objects")
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an arithmetic expression, unless its result would be too large."""
        if isinstance(left, int) and isinstance(right, int):
            self._check_integers(operator, left, right)
        elif operator == "*":
            count, sized = (left, right) if isinstance(left, int) else (right, left)
            length = _length(sized) * (max(count, 0) if isinstance(count, int) else 0)
            if isinstance(sized, str):
                self.budget.text(length)
            self.budget.charge(1 + length // (CHARS_A_UNIT if isinstance(sized, str) else 1))
        elif operator == "%" and isinstance(left, str):
            self._charge_format(left, rules.percent_fields(left), right)
        else:
            self.budget.copied(left)
            self.budget.copied(right)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Subscribe an object; a tuple's hash looks at all of it."""
        if isinstance(argument, tuple):
            self.budget.weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a charged stand-in for str.format, and None for everything else."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None
        template: str = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            self._charge_format(template, rules.brace_fields(template), [args, kwargs])
            return inner(*args, **kwargs)

        setattr(formatted, CHARGED, True)
        return formatted

    def _charge_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kind = next(kind for kind in rules.METHODS if isinstance(owner, kind))
        if name not in rules.METHODS[kind]:
            raise SecurityError(f"a template cannot call {kind.__name__}.{name}")
        self.budget.weigh([args, kwargs])
        if kind is str:
            self.budget.text(len(owner))
            operands = (*args[:1], owner) if name == "join" else (owner, *args)
            self._charge_result(name, operands, kwargs)
            if name.endswith(("split", "splitlines")):
                self.budget.elements(owner)
        elif name in ("count", "index"):
            self.budget.weigh(owner)
        elif name == "copy":
            self.budget.elements(owner)

    def _charge_result(self, name: str, operands: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Charge what a filter or method can make beyond the size of its operands."""
        if name in rules.SIZES:
            self.budget.text(rules.SIZES[name](*operands, **kwargs))
        if name in rules.QUADRATIC:
            others = [*operands[1:], *kwargs.values()]
            self.budget.charge(_length(operands[0]) * sum(map(_length, others)) // COMPARISONS_A_UNIT)

    def _check_integers(self, operator: str, left: int, right: int) -> None:
        bits = max(left.bit_length(), right.bit_length())
        if operator == "*":
            bits = left.bit_length() + right.bit_length()
        elif operator == "**":
            bits = left.bit_length() * abs(right)
        if bits > MAX_INTEGER_BITS:
            raise TooCostly(f"it computes an integer of more than {MAX_INTEGER_BITS} bits")
        self.budget.charge(1)

    def _charge_format(self, template: str, fields: int | None, operands: Any) -> None:
        """Charge a format: each field takes all operands at worst."""
        if fields is None:
            raise TooCostly("it formats a long text, or a field that is named, nested or more than 999 characters wide")
        self.budget.text(len(template) + fields * (self.budget.weigh(operands) + 1000))

    def _charged(self, name: str, function: Callable[..., Any], charge: Callable[[Any], Any]) -> Callable[..., Any]:
        """Wrap a filter or test: its operands are charged before it runs, an iterator it returns becomes a list."""
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        def charged(*args: Any, **kwargs: Any) -> Any:
            operands = args[skip:]
            charge(operands[0])
            if name in rules.COMPARING:
                self.budget.charge(UNITS_A_CALL * _length(operands[0]))
            self.budget.weigh([operands[1:], kwargs])
            if name == "format":
                template = str(operands[0])
                self._charge_format(template, rules.percent_fields(template), [operands[1:], kwargs])
            self._charge_result(name, operands, kwargs)
            result = function(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result

        charged.__dict__.update(getattr(function, "__dict__", {}))
        return charged


EACH, COPY, WHOLE, TICK = " each", " copy", " whole", " tick"
"""Filters that only `Charges` can name: no template can write a space in a filter's name."""

CHARGED = "dashinfer_charged"


class Charges(NodeTransformer):
    """Puts the charges into a parsed template where the environment has no hook of its own."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node.iter = _through(EACH, node.iter)
        if node.test is not None:
            node.test = nodes.And(_tick([node.test]), node.test)
        return self.visit_body(node)

    def visit_body(self, node: Any) -> nodes.Node:
        """Charge a body each time it runs, by the number of nodes it is made of."""
        node.body = [nodes.ExprStmt(_tick(node.body)), *node.body]
        return self.generic_visit(node)

    visit_Macro = visit_CallBlock = visit_Block = visit_body

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Slice):
            node.node = _through(COPY, node.node)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node.nodes = [_through(WHOLE, child) for child in node.nodes]
        return self.generic_visit(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        node.expr = _through(WHOLE, node.expr)
        for operand in node.ops:
            operand.expr = _through(WHOLE, operand.expr)
        return self.generic_visit(node)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        node.key = _through(WHOLE, node.key)
        return self.generic_visit(node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # printed, and so charged, like an expression


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: marks the answers for training and changes nothing here."""

    tags = frozenset(["generation"])  # type: ignore[assignment]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    """Refuse the conversation in the template's own words."""
    raise TemplateError(str(message))


def strftime_now(form: str) -> str:
    """Return the local time of now."""
    return datetime.datetime.now().strftime(form)


@pass_context
def _print(context: Context, value: Any) -> Any:
    """Charge what is printed, into the prompt or into a macro's result."""
    environment: Environment = context.environment
    assert isinstance(environment, Sandbox)
    environment.budget.weigh(value)
    return value


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON as chat templates want it: neither HTML-escaped nor ASCII."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _passing(charge: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def marked(value: Any) -> Any:
        charge(value)
        return value

    return marked


def _nothing(value: Any) -> None:
    """Charge nothing."""


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return 0


def _tick(body: list[Any]) -> nodes.Expr:
    size = sum(1 + sum(1 for _ in node.find_all(nodes.Node)) for node in body)
    return nodes.Filter(nodes.Const(1 + size // NODES_A_UNIT), TICK, [], [], None, None)


def _through(name: str, node: Any) -> Any:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
