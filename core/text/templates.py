"""Renders chat templates: jinja2 sources from a checkpoint, run in a sandbox that bounds their work.

A template is untrusted. It can reach only attributes of plain data, no files and no other templates. Loops, calls,
operations on text, nesting and output are counted and bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ChatTemplateError
from core.text.meter import MAX_CHARACTERS, METER, Meter, bound
from core.text.origin import Traced, joined

if TYPE_CHECKING:
    from jinja2 import Template, nodes

_MAX_SOURCE = 1_000_000  # characters; published templates have fewer than 30,000


def render(
    source: str,
    variables: Mapping[str, object],
    *,
    written: Mapping[str, str] | None = None,
    where: Path | None = None,
) -> Traced:
    """The text that a template renders from ``variables``.

    Args:
        source: the jinja2 template.
        variables: plain data (strings, numbers, lists, dicts), such as ``messages``. Strings that are `Traced` keep
            their origin; that of others is unknown.
        written: further variables, whose text counts as the template's own: ``bos_token``.
        where: the template's file, named in errors.

    Raises:
        ChatTemplateError: the template refuses the conversation (with its own message), is broken, or exceeds a bound.
    """
    from jinja2.exceptions import SecurityError

    from core.text.functions import RefusedError
    from core.text.sandbox import Sandbox

    template = compile_template(source, where)
    own = {name: Sandbox.written(text) for name, text in (written or {}).items()}
    token = METER.set(Meter())
    try:
        return joined(_bounded(template.generate({**own, **variables})))
    except RefusedError as error:
        raise ChatTemplateError(f"the chat template refuses the conversation: {error}", where=where) from error
    except SecurityError as error:
        raise ChatTemplateError(f"the chat template does what the sandbox forbids: {error}", where=where) from error
    except ChatTemplateError as error:
        raise ChatTemplateError(error.problem, where=where, hint=error.hint) from error
    except RecursionError as error:
        raise ChatTemplateError("the chat template recurses without end", where=where) from error
    except Exception as error:
        # A filter, a missing variable or a wrong type inside other libraries' code can raise anything.
        raise ChatTemplateError(
            f"the chat template fails on the conversation: {type(error).__name__}: {_brief(error)}",
            where=where,
            hint="Its messages may lack a key or have a key of a form that this template does not support.",
        ) from error
    finally:
        METER.reset(token)


def _bounded(pieces: Iterator[str]) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_CHARACTERS:
            raise bound(f"writes more than {MAX_CHARACTERS:,} characters")
        yield piece


def compile_template(source: str, where: Path | None = None) -> Template:
    """The compiled template, cached for the next rendering.

    Raises:
        ChatTemplateError: a syntax error, with its line; or a template that jinja2 or Python cannot compile.
    """
    from jinja2.exceptions import TemplateSyntaxError

    if len(source) > _MAX_SOURCE:
        raise ChatTemplateError(
            "the chat template is too long",
            where=where,
            expected=f"at most {_MAX_SOURCE:,} characters",
            found=len(source),
        )
    try:
        return _compiled(source)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template has a syntax error in line {error.lineno}: {error.message}", where=where
        ) from error
    except (RecursionError, MemoryError) as error:
        raise ChatTemplateError("the chat template is nested too deeply", where=where) from error
    except (SyntaxError, ValueError, OverflowError) as error:
        # Limits of Python: 20 nested loops, the digits of a number.
        raise ChatTemplateError(f"the chat template cannot be compiled: {_brief(error)}", where=where) from error


@lru_cache(maxsize=32)
def literals_read(source: str) -> frozenset[str]:
    """The strings that a template looks for in messages: operands of comparisons, arguments of methods (``split``).

    Empty for a template with a syntax error, which compiling reports.
    """
    from jinja2 import nodes

    tree = _parsed(source)
    if tree is None:
        return frozenset()
    readers: list[nodes.Node] = list(tree.find_all(nodes.Compare))
    readers += (call for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr))
    constants = (constant.value for reader in readers for constant in reader.find_all(nodes.Const))
    return frozenset(value for value in constants if isinstance(value, str))


@lru_cache(maxsize=32)
def names_read(source: str) -> frozenset[str]:
    """The variables that a template reads: ``messages``, ``tools``. Empty for one with a syntax error."""
    from jinja2 import nodes

    tree = _parsed(source)
    return (
        frozenset()
        if tree is None
        else frozenset(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")
    )


@lru_cache(maxsize=32)
def words_written(source: str) -> str:
    """The strings of a template's expressions, one on each line."""
    from jinja2 import nodes

    tree = _parsed(source)
    constants = () if tree is None else tree.find_all(nodes.Const)
    return "\n".join(sorted({constant.value for constant in constants if isinstance(constant.value, str)}))


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    from core.text.sandbox import environment

    return environment().from_string(source)


def _parsed(source: str) -> nodes.Template | None:
    from jinja2.exceptions import TemplateSyntaxError

    from core.text.sandbox import environment

    try:
        return environment().parse(source)
    except (TemplateSyntaxError, RecursionError, ValueError):
        return None


def _brief(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 300 else f"{text[:299]}…"
