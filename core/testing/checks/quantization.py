"""Checks of quantization: its error is bounded, it survives saving and loading, and routers are left out."""

from __future__ import annotations

import mlx.core as mx
import pytest

from core.saving import save
from core.testing.base import KitBase
from core.testing.comparing import demand, number
from core.weights import Quantization
from core.weights.tree import all_arrays

_SETTINGS = Quantization(8, 32)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


class QuantizationChecks(KitBase):
    """What quantization does to the architecture's matrices."""

    def test_quantized_model_survives_saving(self) -> None:
        """A failure means that a quantized model changes when it is saved, or that rounding changes too much.

        The logits of the model that was quantized in memory must equal those of the saved and loaded one exactly, and
        be near those of full precision.
        """
        subject = self.subject
        layout = subject.first_layout
        lm = subject.load(subject.checkpoint(layout), quantize=_SETTINGS, dtype=mx.float32)
        rounded = [entry.parameter for entry in lm.report.plan.entries if entry.quantization is not None]
        demand(rounded, "no matrix was quantized: give the kit's config sizes that 32 divides")
        tokens = subject.tokens(subject.length)
        logits, exact = lm.model(tokens), subject.logits(tokens)
        # The median over tokens: rounding may always route single tokens to other experts.
        changes = mx.sort(mx.sqrt(mx.mean(mx.square(logits - exact), axis=-1)).flatten())
        error = number(changes[changes.size // 2] / mx.sqrt(mx.mean(mx.square(exact))))
        demand(
            0 < error <= self.quantization_bound,
            f"8-bit weights change the median token's logits by {error:.1%} of their root mean square, expected more "
            f"than 0 and at most {self.quantization_bound:.0%}\n"
            "  Which module must not be rounded? The hook quantize_module says no.",
        )
        place = subject.directory / "quantized"
        save(lm, place, force=True)
        again = subject.load(place, dtype=mx.float32)
        before, after = all_arrays(lm.model), all_arrays(again.model)
        demand(before.keys() == after.keys(), f"saved and loaded, parameters differ: {before.keys() ^ after.keys()}")
        for path, array in before.items():
            same = mx.array_equal(array, after[path]).item()
            demand(same, f"the quantized parameter {path!r} comes back from a file with other numbers")
        demand(mx.array_equal(again.model(tokens), logits).item(), "the logits differ after saving and loading")

    def test_routers_stay_in_full_precision(self) -> None:
        """A failure means that a router is quantized: rounding it sends tokens to other experts.

        A matrix with one row for each expert is taken for a router. Return False for it in ``quantize_module``.
        """
        subject = self.subject
        counts = [getattr(subject.config, name, None) for name in _EXPERTS]
        experts = next((count for count in counts if count), None)
        if experts is None:
            pytest.skip("the config has no experts")
        routers = [path for path, array in subject.arrays.items() if array.ndim == 2 and array.shape[0] == experts]
        demand(routers, f"no matrix has one row for each of the {experts} experts: is there a router?")
        layout = subject.first_layout
        lm = subject.load(subject.checkpoint(layout), quantize=_SETTINGS, dtype=mx.float32)
        found = all_arrays(lm.model)
        rounded = [path for path in routers if path.removesuffix("weight") + "scales" in found]
        demand(not rounded, f"quantizing rounds the routers {rounded}; quantize_module should answer False for them")
