"""Checks against another implementation's numbers, if the author has a reference."""

from __future__ import annotations

import mlx.core as mx

from core.language_model import LanguageModel
from core.testing.base import KitBase
from core.testing.comparing import demand_close
from core.testing.diff import diff
from core.testing.reference_data import Reference


class ReferenceChecks(KitBase):
    """The results of transformers, or of the reference's author, for the same weights."""

    def test_reference_logits(self) -> None:
        """A failure means that the model computes something else than the reference implementation.

        ``python -m core.testing.diff`` names the first block that departs; the message says the same.
        """
        lm = self.reference_model
        for name, ids, expected in self.expected.prompts():
            found = lm.model(ids)
            message = f"the logits of the reference's {name} prompt differ\n{_where(lm, self.expected)}"
            demand_close(found, expected, self.reference_tolerance, message)

    def test_reference_continuation(self) -> None:
        """A failure means that the model with a cache departs from the reference implementation with its own cache."""
        lm = self.reference_model
        for name, ids, continuation, expected in self.expected.continuations():
            cache = lm.make_cache()
            pieces = [lm.model(ids, cache=cache)[:, -1:]]
            pieces += [lm.model(continuation[:, i : i + 1], cache=cache) for i in range(continuation.shape[1] - 1)]
            message = f"the logits of the reference's continuation of its {name} prompt differ"
            demand_close(mx.concatenate(pieces, axis=1), expected, self.reference_tolerance, message)


def _where(lm: LanguageModel, reference: Reference) -> str:
    return "\n".join(f"  {line}" for line in str(diff(lm.model, reference)).splitlines())
