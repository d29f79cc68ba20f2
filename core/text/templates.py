"""Chat templates: jinja2 sources from a checkpoint, run in its immutable sandbox.

Knows what published templates expect of their renderer (the filters, globals, tags and whitespace rules that
transformers gives them); knows no tokens. A template is data that somebody else wrote: it reaches no attribute of an
object that is not plain data, no file and no other template, and loops, repetitions and output are bounded. The bounds
stop accidents and cheap attacks; they are not a proof against every way to waste memory inside one filter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from core.errors import ChatTemplateError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 16_000_000  # of a rendered chat, or of a string or list that an operator makes: far above any context
MAX_STEPS = 1_000_000  # of all range() loops of one rendering together
MAX_BITS = 10_000  # of an integer that an operator makes


class _RefusedError(Exception):
    """``raise_exception`` of a template."""


def render(source: str, variables: Mapping[str, object], *, where: Path | None = None) -> str:
    """The text that a template makes of ``variables``.

    Args:
        source: the jinja2 template.
        variables: plain data (strings, numbers, lists, dicts), such as ``messages`` and ``bos_token``.
        where: the template's file, named in errors.

    Raises:
        ChatTemplateError: the template refuses the conversation (with its own message), is broken, or exceeds a bound.
    """
    import jinja2

    template = compile_template(source, where)
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate({**variables, "range": _bounded_range()}):
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise _bound(f"writes more than {MAX_CHARACTERS:,} characters")
            pieces.append(piece)
    except _RefusedError as error:
        raise ChatTemplateError(f"the chat template refuses the conversation: {error}", where=where) from error
    except jinja2.exceptions.SecurityError as error:
        raise ChatTemplateError(f"the chat template does what the sandbox forbids: {error}", where=where) from error
    except ChatTemplateError:
        raise
    except RecursionError as error:
        raise ChatTemplateError("the chat template recurses without end", where=where) from error
    except Exception as error:
        # A filter, a missing variable or a wrong type inside foreign code can raise anything.
        raise ChatTemplateError(
            f"the chat template fails on the conversation: {type(error).__name__}: {error}",
            where=where,
            hint="Its messages may lack a key or have one of a form that this template does not know.",
        ) from error
    return "".join(pieces)


def compile_template(source: str, where: Path | None = None) -> Template:
    """The compiled template, kept for the next rendering.

    Raises:
        ChatTemplateError: a syntax error, with its line.
    """
    import jinja2

    try:
        return _compiled(source)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template has a syntax error in line {error.lineno}: {error.message}", where=where
        ) from error
    except RecursionError as error:
        raise ChatTemplateError("the chat template is nested too deeply", where=where) from error


@lru_cache(maxsize=32)
def literals_read(source: str) -> frozenset[str]:
    """The strings that a template looks for in messages: operands of comparisons, arguments of methods (``split``).

    A template with a syntax error reads none; compiling it tells why.
    """
    import jinja2
    from jinja2 import nodes

    try:
        tree = _environment().parse(source)
    except (jinja2.exceptions.TemplateSyntaxError, RecursionError):
        return frozenset()
    readers: list[nodes.Node] = list(tree.find_all(nodes.Compare))
    readers += (call for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr))
    constants = (constant.value for reader in readers for constant in reader.find_all(nodes.Const))
    return frozenset(value for value in constants if isinstance(value, str))


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    import jinja2.ext
    from jinja2 import nodes
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Sandbox(ImmutableSandboxedEnvironment):
        """Operators that can make a huge value out of a short template look before they compute."""

        intercepted_binops = frozenset(["+", "*", "**"])

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

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
                raise jinja2.exceptions.SecurityError(f"a namespace attribute named {name!r}")
            super().__setitem__(name, value)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols], cache_size=0
    )
    environment.filters["tojson"] = _tojson
    # jinja2's own marks text as HTML, and what is added to it is then escaped: '{"name": ' + arguments|tojson|safe, as
    # published templates have it, would write &#34; (and does, in transformers).
    environment.filters["safe"] = str
    environment.globals.pop("lipsum")
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=PlainNamespace, dict=_dict
    )
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: jinja2's own filter escapes HTML and sorts keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` without the attributes of the class."""
    return dict(*args, **kwargs)


def _bounded_range() -> Callable[..., range]:
    """`range` whose results, over one rendering, have at most `MAX_STEPS` items."""
    left = MAX_STEPS

    def bounded(*args: int) -> range:
        nonlocal left
        result = range(*args)
        left -= len(result)
        if left < 0:
            raise _bound(f"loops more than {MAX_STEPS:,} times")
        return result

    return bounded


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sized = (str, list, tuple, bytes)
    items = bits = 0
    if isinstance(left, int) and isinstance(right, int):
        bits = {"+": 0, "*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}[operator]
    elif operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        items = len(left) + len(right)
    elif operator == "*" and isinstance(left, sized) and isinstance(right, int):
        items = len(left) * right
    elif operator == "*" and isinstance(left, int) and isinstance(right, sized):
        items = left * len(right)
    if items > MAX_CHARACTERS:
        raise _bound(f"makes a value of more than {MAX_CHARACTERS:,} items")
    if bits > MAX_BITS:
        raise _bound(f"makes a number of more than {MAX_BITS:,} bits")


def _bound(what: str) -> ChatTemplateError:
    return ChatTemplateError(f"the chat template {what}", hint="It is broken or hostile: no conversation needs that.")
