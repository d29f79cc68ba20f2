"""``ArchitectureTests``: a class that plugin authors subclass; pytest runs its checks.

The checks are in ``core.testing.checks``.
"""

from __future__ import annotations

import os

# Comparisons in float32 need float32 products; MLX's CUDA backend rounds them to TF32 by default.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from core.testing.base import KitBase
from core.testing.checks.config import ConfigChecks
from core.testing.checks.contract import ContractChecks
from core.testing.checks.numbers import NumberChecks
from core.testing.checks.quantization import QuantizationChecks
from core.testing.checks.reference import ReferenceChecks
from core.testing.checks.sequence import SequenceChecks
from core.testing.checks.weights import WeightChecks


class ArchitectureTests(  # pytest runs the last base class first: if its checks fail, the others probably fail too
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
        config: a tiny ``config.json``, as a dictionary or its path; None takes the reference's. Choose widths that 32
            divides, two blocks or three, and a sliding window of about eight: small enough to run in a second, large
            enough to show mistakes.
        reference: a directory with ``config.json``, weights and ``reference.npz``, made by
            ``python -m core.testing.reference``; None runs the checks that need no reference.
        plugin: as for ``core.load``; None is the registry's choice.
        layouts: the layouts that the plugin must have a weight map for; None takes those it has.
        inert: further config keys (dotted, within nested objects) that the plugin reads and that change no number, as
            ``max_position_embeddings`` does not.
        fixed_epsilons: path endings of the norms whose epsilon is a constant.
        tolerance: allowed difference between two ways to compute one result, in units of the largest logit.
        reference_tolerance: the same, against the reference.
        quantization_bound: allowed change of the median token's logits by 8-bit weights, in units of their root mean
            square.
        order_matters: whether blocks use the order of earlier tokens.
    """
