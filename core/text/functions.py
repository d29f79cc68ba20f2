"""The filters, functions and namespace that chat templates can use besides jinja2's own."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, NoReturn

from jinja2.exceptions import FilterArgumentError, SecurityError
from jinja2.filters import make_attrgetter
from jinja2.utils import Namespace, pass_environment

from core.text.formatting import percent
from core.text.meter import METER, bound
from core.text.origin import Traced


class RefusedError(Exception):
    """The error of a template's ``raise_exception``."""


class PlainNamespace(Namespace):
    """A namespace that refuses names with a leading underscore, which lead to Python's internals."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace attribute named {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # without its contents, which may include itself


def texts(values: Any) -> list[Any]:
    """The items of any iterable, counted."""
    if isinstance(values, str):
        METER.get().make_items(len(values))
    return list(METER.get().counted(values))


@pass_environment
def join(sandbox: Any, value: Any, d: object = "", attribute: str | int | None = None) -> str:
    """jinja2's ``join``: the items as text, with ``d`` between them."""
    items = texts(value)
    if attribute is not None:
        items = list(map(make_attrgetter(sandbox, attribute), items))
    between = sandbox.text(d)
    printed = [sandbox.text(item) for item in items]
    METER.get().make(sum(map(len, printed)) + len(between) * len(printed))
    return (between if isinstance(between, Traced) else Traced(between)).join(printed)


@pass_environment
def format_(sandbox: Any, value: object, *args: Any, **kwargs: Any) -> str:
    """jinja2's ``format``: ``%`` with the arguments."""
    if args and kwargs:
        raise FilterArgumentError("can't handle positional and keyword arguments at the same time")
    form = sandbox.text(value)
    return percent(form if isinstance(form, Traced) else Traced(form), kwargs or args, sandbox.text)


@pass_environment
def sum_(sandbox: Any, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    """jinja2's ``sum``. Lists are added one by one, and each addition copies the earlier items."""
    items = texts(iterable)
    if attribute is not None:
        items = list(map(make_attrgetter(sandbox, attribute), items))
    if not isinstance(start, int | float):
        METER.get().spend(len(items) * METER.get().weigh(items) // 64)
    return sum(items, start)


def raise_exception(message: object) -> NoReturn:
    raise RefusedError(str(message))


def strftime_now(form: str) -> str:
    if len(form) > 1_000 or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise bound("asks for a date that is far too long")
    return datetime.now().strftime(form)


def dict_(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict`, without access to the class's attributes."""
    return dict(*args, **kwargs)


def range_(*args: int) -> range:
    result = range(*args)
    METER.get().make_items(len(result))
    return result
