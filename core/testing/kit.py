"""``ArchitectureTests``: what a plugin author subclasses, and pytest runs as named checks.

Knows how the checks are put together; each is in ``core.testing.checks``.
"""

from __future__ import annotations

import os

# Comparisons in float32 need float32 products; MLX's CUDA backend rounds them to TF32 unless told not to.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from core.testing.base import KitBase
from core.testing.checks.config import ConfigChecks
from core.testing.checks.contract import ContractChecks
from core.testing.checks.numbers import NumberChecks
from core.testing.checks.quantization import QuantizationChecks
from core.testing.checks.reference import ReferenceChecks
from core.testing.checks.sequence import SequenceChecks
from core.testing.checks.weights import WeightChecks


class ArchitectureTests(  # pytest runs the last of them first: what fails first is what the others depend on
    ReferenceChecks,
    ContractChecks,
    QuantizationChecks,
    NumberChecks,
    SequenceChecks,
    WeightChecks,
    ConfigChecks,
    KitBase,
):
    """The checks of one architecture in one tiny configuration. Subclass it in a test file, and set:

    Attributes:
        config: a tiny ``config.json``, as a dictionary or the path of one; None takes the reference's. Widths that 32
            divides, two blocks or three, a sliding window of about eight: small enough for a second, large enough to
            be wrong.
        reference: a directory with ``config.json``, weights and ``reference.npz``, made by
            ``python -m core.testing.reference``; None checks all that can be checked without one.
        plugin: as for ``core.load``; None is the registry's choice.
        layouts: the layouts that the plugin must have a weight map for; None takes those it has.
        inert: further config keys (dotted, within nested objects) that the plugin reads and that change no number, as
            ``max_position_embeddings`` does not.
        fixed_epsilons: how the paths of those norms end whose epsilon is a constant.
        tolerance: allowed difference between two ways to one result, in units of the largest logit.
        reference_tolerance: the same, against the reference.
        quantization_bound: allowed change of the median token's logits by 8-bit weights, in units of their root mean
            square.
        order_matters: a block can tell in which order it has seen earlier tokens.
    """
