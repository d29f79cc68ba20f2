"""Checks of the config: which files it accepts and refuses, which keys it reads, and that every key it reads has an
effect."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from core.errors import ConfigError, CoreError
from core.testing.base import KitBase
from core.testing.comparing import demand, difference
from core.testing.mutations import alternatives, get, leaves, put, take, wrong_values
from core.testing.subject import Subject

_INERT = frozenset({"max_position_embeddings"})  # the context length, which plain rotary embeddings do not read


class ConfigChecks(KitBase):
    """Checks of the plugin's ``parse_config``."""

    def test_config_is_accepted(self) -> None:
        """A failure means that the hook ``parse_config`` refuses the config, or reads it differently each time."""
        subject = self.subject
        demand(
            subject.bound.parse_config(self.raw) == subject.config,
            "parse_config returns another config when it is called twice",
        )
        if self.reference is not None:
            subject.bound.parse_config(self.expected.config)

    def test_config_rejects_mutations(self) -> None:
        """A failure means that a damaged ``config.json`` is accepted, or refused without naming the key.

        Every key that the config class reads is given a value of another type, and taken away. Look at the field's
        type (``int`` and not ``Any``; pydantic's strict mode), and let no validator coerce.
        """
        subject = self.subject
        for path in leaves(self.raw):
            if not _is_read(subject, path):
                continue
            for wrong in wrong_values(get(self.raw, path)):
                _demand_refusal(subject, put(self.raw, path, wrong), path, f"set to {wrong!r}")
        for path in leaves(self.raw):
            changed = take(self.raw, path)
            try:
                subject.bound.parse_config(changed)
            except ConfigError as error:
                named = path[-1] in str(error)
                demand(named, f"without the config key {'.'.join(path)!r}, the error does not name it: {error}")

    def test_every_config_key_is_read(self) -> None:
        """A failure means that a key of the config is not read, so a model that needs it computes wrongly.

        Add the field to the config class, or, where it has no effect on what is computed, its name to ``harmless``.
        """
        for source, raw in (("config", self.raw), *self._reference_config()):
            unread = self.subject.bound.parse_config(raw).unread_keys(raw)
            demand(not unread, f"these keys of the {source} are neither read nor declared harmless: {unread}")

    def test_every_config_key_matters(self) -> None:
        """A failure means that a key is read but has no effect: on no shape, no logit, and on whether the config is
        refused.

        A block probably has a constant, or a default, where it should take the config's value. A key that correctly
        changes nothing belongs in ``inert``.
        """
        subject = self.subject
        idle = [
            name
            for path in leaves(self.raw)
            if (name := ".".join(path)) not in self.inert and path[-1] not in _INERT and not _matters(subject, path)
        ]
        demand(
            not idle,
            f"the config class reads {', '.join(idle)}, but another value changes neither shapes nor logits\n"
            "  Look for a constant in the block; a key that rightly changes nothing belongs to the kit's `inert`.",
        )

    def test_norms_take_their_epsilon_from_the_config(self) -> None:
        """A failure means that a norm does not use the config's epsilon.

        The config's epsilon is multiplied by a hundred, and every norm's must change. Norms with a correct constant
        belong in ``fixed_epsilons``.
        """
        keys = [
            path for path in leaves(self.raw) if path[-1].endswith(("eps", "epsilon")) and _is_read(self.subject, path)
        ]
        if not keys:
            pytest.skip("the config has no epsilon")
        raw = self.raw
        for path in keys:
            raw = put(raw, path, get(raw, path) * 100)
        other = dict(Subject(raw, self.plugin, lambda _: None).model.named_modules())
        for path, module in self.subject.model.named_modules():
            eps = getattr(module, "eps", None)
            if isinstance(eps, float) and not path.endswith(tuple(self.fixed_epsilons)):
                changed = getattr(other[path], "eps", None) != eps
                demand(changed, f"the norm {path!r} has an epsilon of {eps}, whatever the config says")

    def test_defaults_are_the_references(self) -> None:
        """A failure means that a missing key gets another value than in the reference implementation.

        Published files leave out keys that have their class's default. A field needs the same default, or none, so that
        a file without the key is refused.
        """
        defaults = self.expected.defaults
        if not defaults:
            pytest.skip("the reference does not say what the defaults are; core.testing.reference writes them anew")
        subject, raw = self.subject, self.expected.config
        for key in sorted(defaults.keys() & raw.keys() - {"model_type", "architectures"}):
            absent = _parsed(subject, take(raw, (key,)))
            stated = _parsed(subject, put(raw, (key,), defaults[key]))
            if absent is not None and stated is not None and absent != stated:
                raise AssertionError(
                    f"without the config key {key!r}, parse_config takes another value than the reference's default, "
                    f"{defaults[key]!r}\n  Give the field that default, or none."
                )

    def test_config_can_be_copied_and_pickled(self) -> None:
        """A failure means that a config cannot be sent to another process; keep functions and modules out of it."""
        config = self.subject.config
        demand(copy.deepcopy(config) == config, "a deep copy of the config differs from it")
        try:
            twin = pickle.loads(pickle.dumps(config))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(f"the config cannot be pickled: {error}") from error
        demand(twin == config, "the config that comes back from pickle differs from it")

    def _reference_config(self) -> list[tuple[str, dict[str, Any]]]:
        return [] if self.reference is None else [("reference's config", self.expected.config)]


def _parsed(subject: Subject, raw: dict[str, Any]) -> object:
    """The plugin's config object; None if it refuses."""
    try:
        return subject.bound.parse_config(raw)
    except CoreError:
        return None


def _is_read(subject: Subject, path: tuple[str, ...]) -> bool:
    """Whether another value of the same type is refused, or changes the parsed config."""
    return any(
        _parsed(subject, put(subject.raw, path, other)) != subject.config
        for other in alternatives(get(subject.raw, path))
    )


def _demand_refusal(subject: Subject, raw: dict[str, Any], path: tuple[str, ...], how: str) -> None:
    name = ".".join(path)
    try:
        subject.bound.parse_config(raw)
    except ConfigError as error:
        demand(path[-1] in str(error), f"the config key {name!r} {how} is refused without being named: {error}")
    except CoreError as error:
        raise AssertionError(f"the config key {name!r} {how} raises no ConfigError, but {error!r}") from error
    else:
        raise AssertionError(f"the config key {name!r} is accepted when it is {how}: give the field a strict type")


def _matters(subject: Subject, path: tuple[str, ...]) -> bool:
    """Whether some other value of a key has an effect on the model, or is refused, or the key is not read at all."""
    accepted = False
    for other in alternatives(get(subject.raw, path)):
        changed = put(subject.raw, path, other)
        parsed = _parsed(subject, changed)
        if parsed is None or parsed == subject.config:
            continue
        accepted = True
        try:
            if _acts_differently(subject, Subject(changed, subject.plugin, lambda _: None)):
                return True
        except (CoreError, ValueError):  # no such model can be built: the plugin has read the key
            return True
    return not accepted


def _acts_differently(subject: Subject, other: Subject) -> bool:
    shapes = {name: array.shape for name, array in subject.arrays.items()}
    if {name: array.shape for name, array in other.arrays.items()} != shapes:
        return True
    other.adopt(subject)
    tokens = subject.tokens(subject.length)
    return difference(other.logits(tokens), subject.logits(tokens)) > 1e-5
