"""jinja2's immutable sandbox for chat templates: work is counted, and text keeps its origin.

Whatever a template does to text goes through here: constants become `Traced` text of the template's, operators, methods
and filters keep the origin of each character where they can, and say that it is unknown where they cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache, lru_cache, wraps
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any, NoReturn

import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import FilterArgumentError, SecurityError
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_environment

from core.text.content import Parts
from core.text.formatting import formatted, percent
from core.text.json_text import tojson
from core.text.meter import MAX_BITS, METER, bound
from core.text.origin import GIVEN, UNKNOWN, WRITTEN, Traced, origin_of
from core.text.sizes import check_size

_BYTES = frozenset({"encode", "to_bytes", "from_bytes"})  # methods that make bytes, which no template needs


_SCOPES = frozenset({"_loop_vars", "_block_vars"})  # what jinja2 adds to the arguments of every call


_COMPARING = (
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    ">=",
    "ge",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
    "in",
)


class RefusedError(Exception):
    """``raise_exception`` of a template."""


class Generator(CodeGenerator):
    """Compiles templates so that the environment sees every constant, output, comparison, slice, list and block."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 (jinja2's own names)
        if isinstance(node.value, str):
            self.write(f"environment.written({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:  # noqa: N802
        self.write(f"environment.written({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concatenated((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(")
        self._wrapped("compared", node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802
        self.write(f" {operators[node.op]} ")
        self._wrapped("compared", node.expr, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.made(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.literal(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.literal(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.literal(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        if node.test is not None:
            tick = nodes.EnvironmentAttribute("passes()")  # a node of jinja2's own, and not one of its counted calls
            node.test = nodes.And(tick, node.test).set_lineno(node.lineno).set_environment(self.environment)
        super().visit_For(node, frame)

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.passes()")
        super().blockvisit(nodes, frame)

    def _wrapped(self, function: str, node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{function}(")
        self.visit(node, frame)
        self.write(")")

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible  # computed, and counted, when the template runs
        return super()._output_child_to_const(node, frame, finalize)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.written({''.join(group)!r})"

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        super()._output_child_pre(node, frame, finalize)
        self.write("environment.text(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")
        super()._output_child_post(node, frame, finalize)


class Sandbox(ImmutableSandboxedEnvironment):
    """Runs what `Generator` compiles. Each method counts what it does on the rendering's `METER`."""

    code_generator_class = Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    @staticmethod
    @lru_cache(maxsize=4096)
    def written(text: str) -> Traced:
        """Text of the template's own."""
        return Traced(text, WRITTEN * len(text))

    @staticmethod
    def passes() -> bool:
        """True: a block is entered, or a condition asked."""
        METER.get().spend()
        return True

    @staticmethod
    def compared(value: object) -> Any:
        """``value``, an operand of a comparison."""
        return METER.get().read_deep(value)

    @staticmethod
    def literal(value: Any) -> Any:
        """A list, tuple or dict that the template has written out; nested in each other they grow fast."""
        return METER.get().read_deep(value)

    @staticmethod
    def made(value: Any, sources: Iterable[object] = ()) -> Any:
        """``value``, which was just made of ``sources``, counted; text of no known origin gets that of its sources."""
        meter = METER.get()
        if isinstance(value, str):
            meter.make(len(value))
            if not isinstance(value, Traced) and not hasattr(value, "__html__"):
                kinds = _kinds(sources)
                return Traced(value, (kinds.pop() if len(kinds) == 1 else UNKNOWN) * len(value))
        elif isinstance(value, GeneratorType):
            return meter.counted(value)
        elif isinstance(value, list | tuple | dict):
            meter.make_items(len(value))
        return value

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        listed = list(pieces)
        METER.get().spend()
        METER.get().make(sum(map(len, listed)))
        return next((piece for piece in listed if hasattr(piece, "__html__")), Traced("", b"")).join(listed)

    def concatenated(self, values: Iterable[object]) -> str:
        """``a ~ b ~ …``"""
        return self.concat([str(self.text(value)) for value in values])

    def text(self, value: object) -> str:
        """``value`` as a template prints it."""
        if isinstance(value, str):
            return value
        if isinstance(value, Parts):
            value.printed = True
        METER.get().read_deep(value)
        text: str = self.made(str(value), [value])
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        meter.spend()
        meter.read(left)
        if isinstance(left, str) and not hasattr(left, "__html__"):
            left = left if isinstance(left, Traced) else Traced(left)
            if operator == "%":
                return percent(left, right, self.text)
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        METER.get().spend()
        given = {name: value for name, value in kwargs.items() if name not in _SCOPES}
        values = (*args, *given.values())
        for value in values:
            METER.get().read(value)
        owner = __obj.__self__ if isinstance(__obj, MethodType | BuiltinMethodType) else None
        if isinstance(owner, str):
            METER.get().read(owner)
            if __obj.__name__ == "join" and len(args) == 1:
                args = values = (_texts(args[0]),)
                METER.get().make(sum(map(len, args[0])) + len(owner) * len(args[0]))
            if not isinstance(owner, Traced) and not hasattr(owner, "__html__"):
                __obj = getattr(Traced(owner), __obj.__name__)
            check_size(__obj.__name__, owner, args, given)
        elif isinstance(owner, list | tuple | dict):
            if __obj.__name__ in ("index", "count"):  # which compare the items
                METER.get().read_deep(owner)
            for value in values:
                if isinstance(value, str):
                    METER.get().spend(len(value) // 16)
        return __self.made(super().call(__context, __obj, *args, **kwargs), (owner, *values))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _BYTES and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``format`` and ``format_map`` of text, with bounds; jinja2's own for everything else."""
        owner = value.__self__ if isinstance(value, MethodType | BuiltinMethodType) else None
        if not isinstance(owner, str) or hasattr(owner, "__html__") or value.__name__ not in ("format", "format_map"):
            return super().wrap_str_format(value)
        form = owner if isinstance(owner, Traced) else Traced(owner)

        def format_(*args: Any, **kwargs: Any) -> str:
            return formatted(SandboxedFormatter(self), form, args, kwargs, self.text)

        def format_map(mapping: Any) -> str:
            return formatted(SandboxedFormatter(self), form, (), mapping, self.text)

        return format_ if value.__name__ == "format" else format_map


class Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks assistant text for training; here it is its contents."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PlainNamespace(Namespace):
    """A namespace without underscored names, which lead to Python's internals."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace attribute named {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # not what is in it, which may be itself


@cache
def environment() -> Sandbox:
    """The one environment, with the filters, globals, tags and whitespace rules of transformers."""
    made = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
        cache_size=0,
        optimized=False,  # nothing is computed while compiling, where nobody counts
    )
    # jinja2's own marks text as HTML, and what is added to it is then escaped: '{"name": ' + arguments|tojson|safe, as
    # published templates have it, would write &#34; (and does, in transformers).
    made.filters.update(tojson=tojson, safe=made.text, string=made.text, join=_join, format=_format, sum=_sum)
    made.filters = {name: _counted_filter(made, name, function) for name, function in made.filters.items()}
    comparing: dict[str, Any] = {name: made.tests[name] for name in _COMPARING}
    made.tests.update((name, _counted_test(test)) for name, test in comparing.items())
    made.globals.pop("lipsum")
    made.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=PlainNamespace, dict=_dict, range=_range
    )
    return made


def _counted_filter(sandbox: Sandbox, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    skipped = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        values = (*args[skipped:], *kwargs.values())
        METER.get().spend()
        for value in values:
            METER.get().read(value)
        if values:
            check_size(name, args[skipped], args[skipped + 1 :], kwargs)
        return sandbox.made(function(*args, **kwargs), values)

    return counted


def _counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            METER.get().read_deep(value)
        return function(*args, **kwargs)

    return counted


def _kinds(values: Iterable[object]) -> set[bytes]:
    """The origins of all text in ``values``, however deep. Text made of them is of the same, if there is but one."""
    kinds: set[bytes] = set()
    rest = list(values)
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            origin = origin_of(value)
            kinds.update(kind for kind in (WRITTEN, GIVEN, UNKNOWN) if kind in origin)
        elif isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            rest += list.__iter__(value) if isinstance(value, list) else value
        elif value is not None and not isinstance(value, bool | int | float):
            kinds.add(UNKNOWN)
    return kinds


def _check_operands(operator: str, left: Any, right: Any) -> None:
    meter = METER.get()
    if isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}.get(operator, 0)
        if bits > MAX_BITS:
            raise bound(f"makes a number of more than {MAX_BITS:,} bits")
        return
    size = 0
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        size = len(left) + len(right)
    elif operator == "*":
        many, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            size = len(many) * times
    if isinstance(left, str) or isinstance(right, str):
        meter.make(max(size, 0))
    else:
        meter.make_items(max(size, 0))


def _texts(values: Any) -> list[Any]:
    if isinstance(values, str):
        METER.get().make_items(len(values))
    return list(METER.get().counted(values))


@pass_environment
def _join(sandbox: Sandbox, value: Any, d: object = "", attribute: str | int | None = None) -> str:
    """jinja2's ``join``: the items as text, with ``d`` between them."""
    items = _texts(value)
    if attribute is not None:
        items = list(map(make_attrgetter(sandbox, attribute), items))
    between = sandbox.text(d)
    texts = [sandbox.text(item) for item in items]
    METER.get().make(sum(map(len, texts)) + len(between) * len(texts))
    return (between if isinstance(between, Traced) else Traced(between)).join(texts)


@pass_environment
def _format(sandbox: Sandbox, value: object, *args: Any, **kwargs: Any) -> str:
    """jinja2's ``format``: ``%`` with the arguments."""
    if args and kwargs:
        raise FilterArgumentError("can't handle positional and keyword arguments at the same time")
    form = sandbox.text(value)
    return percent(form if isinstance(form, Traced) else Traced(form), kwargs or args, sandbox.text)


@pass_environment
def _sum(sandbox: Sandbox, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    """jinja2's ``sum``. Lists are added one by one, each of which copies those before."""
    items = _texts(iterable)
    if attribute is not None:
        items = list(map(make_attrgetter(sandbox, attribute), items))
    if not isinstance(start, int | float):
        METER.get().spend(len(items) * METER.get().weigh(items) // 64)
    return sum(items, start)


def _raise_exception(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 1_000 or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise bound("asks for a date of absurd length")
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` without the attributes of the class."""
    return dict(*args, **kwargs)


def _range(*args: int) -> range:
    result = range(*args)
    METER.get().make_items(len(result))
    return result
