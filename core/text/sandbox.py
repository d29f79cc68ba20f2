"""``Sandbox``: jinja2's immutable sandbox for chat templates. It counts work, and text keeps its origin.

All operations of a template on text go through it: constants become `Traced` text of the template. Operators, methods
and filters keep the origin of each character where they can, and else mark it as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, lru_cache, wraps
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any

from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from core.text import functions
from core.text.compiler import Generation, Generator
from core.text.content import Parts
from core.text.formatting import formatted, percent
from core.text.json_text import tojson
from core.text.meter import MAX_BITS, METER, bound
from core.text.origin import GIVEN, UNKNOWN, WRITTEN, Traced, joined, origin_of
from core.text.sizes import check_size

_BYTES = frozenset({"encode", "to_bytes", "from_bytes"})  # methods that return bytes, which no template needs


_SCOPES = frozenset({"_loop_vars", "_block_vars"})  # arguments that jinja2 adds to every call


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


class Sandbox(ImmutableSandboxedEnvironment):
    """Runs the code that `Generator` compiles. Each method counts its work on the rendering's `METER`."""

    code_generator_class = Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    @staticmethod
    @lru_cache(maxsize=4096)
    def written(text: str) -> Traced:
        """Text that the template wrote."""
        return Traced(text, WRITTEN * len(text))

    @staticmethod
    def passes() -> bool:
        """Counts a block or a condition; always True."""
        METER.get().spend()
        return True

    @staticmethod
    def compared(value: object) -> Any:
        """``value``, an operand of a comparison; counted."""
        return METER.get().read_deep(value)

    @staticmethod
    def literal(value: Any) -> Any:
        """A list, tuple or dict literal of the template, counted, because nested ones grow fast."""
        return METER.get().read_deep(value)

    @staticmethod
    def made(value: Any, sources: Iterable[object] = ()) -> Any:
        """``value``, which was just made from ``sources``, counted. Text of unknown origin gets that of its sources."""
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
        return joined(listed)

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
                args = values = (functions.texts(args[0]),)
                METER.get().make(sum(map(len, args[0])) + len(owner) * len(args[0]))
            if not isinstance(owner, Traced) and not hasattr(owner, "__html__"):
                __obj = getattr(Traced(owner), __obj.__name__)
            check_size(__obj.__name__, owner, args, given)
        elif isinstance(owner, list | tuple | dict):
            if __obj.__name__ in ("index", "count"):  # methods that compare the items
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


@cache
def environment() -> Sandbox:
    """The shared environment, with the filters, globals, tags and whitespace rules of transformers."""
    made = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
        cache_size=0,
        optimized=False,  # compute no constants while compiling, as that would not be counted
    )
    # jinja2's own filter marks its text as HTML, and text added to it is then escaped: '{"name": ' +
    # arguments|tojson|safe, as published templates have it, would give &#34; (in transformers it does).
    made.filters.update(
        tojson=tojson,
        safe=made.text,
        string=made.text,
        join=functions.join,
        format=functions.format_,
        sum=functions.sum_,
    )
    made.filters = {name: _counted_filter(made, name, function) for name, function in made.filters.items()}
    comparing: dict[str, Any] = {name: made.tests[name] for name in _COMPARING}
    made.tests.update((name, _counted_test(test)) for name, test in comparing.items())
    made.globals.pop("lipsum")
    made.globals.update(
        raise_exception=functions.raise_exception,
        strftime_now=functions.strftime_now,
        namespace=functions.PlainNamespace,
        dict=functions.dict_,
        range=functions.range_,
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
    """The origins of all text in ``values``, at any depth. If there is only one, text made from them has it too."""
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
