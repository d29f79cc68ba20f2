"""Checks of numbers: dtypes, precision, gradients, and whether the language head is tied."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from core.errors import ConfigError
from core.nn.step import Step, StepPlan
from core.testing.base import KitBase
from core.testing.comparing import demand, demand_close, difference, number
from core.testing.subject import Subject
from core.weights.tree import all_arrays, replace

_TOKENS = 6
_STEP = 3e-3  # of a numerical derivative: large compared with float32's rounding, small compared with curvature
_DERIVATIVE = 0.03  # float32 stays below 0.003; rounding to float16 within a block gives 0.1 and more


class NumberChecks(KitBase):
    """Dtypes, precision and gradients of the model."""

    def test_dtypes_are_as_declared(self) -> None:
        """A failure means that a parameter, an activation or a cache has another dtype than the load report says.

        A block probably makes an array without a dtype, or casts and does not cast back.
        """
        subject = self.subject
        layout = subject.first_layout
        for stored, asked in ((mx.float32, None), (mx.bfloat16, None), (mx.bfloat16, mx.float32), (None, mx.float16)):
            lm = subject.load(subject.checkpoint(layout, stored or mx.float32), dtype=asked)
            compute = lm.report.plan.compute_dtype
            how = f"a checkpoint of {stored}, loaded with dtype={asked}"
            demand(asked is None or compute == asked, f"{how}, computes in {compute}")
            for entry in lm.report.plan.entries:
                found = all_arrays(lm.model)[entry.parameter].dtype
                demand(found == entry.dtype, f"{how}: the parameter {entry.parameter} is {found}, not {entry.dtype}")
            x = lm.model.embed_tokens(subject.tokens(5)).astype(compute)
            for index, step in enumerate(StepPlan(1, 5, len(lm.model.layers)).steps()):
                y = lm.model.layers[index](x, step)
                demand(y.dtype == x.dtype, f"{how}: block {index} makes {y.dtype} of {x.dtype}")
                x = y
            cache = lm.make_cache()
            logits = lm.model(subject.tokens(5), cache=cache)
            demand(logits.dtype == compute, f"{how}: the logits are {logits.dtype}, the report says {compute}")
            finite = bool(mx.all(mx.isfinite(logits)).item())
            demand(finite or compute == mx.float16, f"{how}: the logits are not finite")  # random weights may overflow

    def test_float32_is_not_rounded(self) -> None:
        """A failure means that a block rounds to a narrower dtype inside, or that a gradient is wrong.

        In float32, a block's output must change along random directions as its gradient predicts. The median over
        tokens and directions counts, because the change may route single tokens to other experts.
        """
        model = self.subject.model
        x = model.embed_tokens(self.subject.tokens(_TOKENS))
        plan = StepPlan(1, _TOKENS, len(model.layers))
        for index, (block, step) in enumerate(zip(model.layers, plan.steps(), strict=True)):
            mx.eval(x)
            errors = sorted(error for seed in range(2) for error in _derivative_errors(block, step, x, seed))
            error = errors[len(errors) // 2]
            demand(
                error <= _DERIVATIVE,
                f"block {index} does not change as its gradient says: off by {error:.1%}, at most {_DERIVATIVE:.0%}\n"
                "  Look for a cast within the block, and at the gradient of a kernel or of mx.custom_function.",
            )
            x = block(x, step)

    def test_head_is_tied_as_configured(self) -> None:
        """A failure means that the head shares the embedding's matrix although the config says no, or the reverse.

        The check is made with the config as it is, and with ``tie_word_embeddings`` inverted if the plugin accepts
        that.
        """
        tied = self.subject.config.tie_word_embeddings
        self._demand_head(self.subject, tied)
        try:
            other = self.subject.like({"tie_word_embeddings": not tied})
        except ConfigError:
            return
        if other.config.tie_word_embeddings != tied:
            self._demand_head(other, not tied)
            for layout in other.maps:
                other.plan(other.checkpoint(layout)).check()

    def test_gradients_reach_every_parameter(self) -> None:
        """A failure means that a parameter has no effect: its gradient is zero, or not finite.

        Either it is not used, or a ``stop_gradient`` (or an integer) lies between it and the logits.
        """
        subject = self.subject
        tokens = mx.concatenate([subject.tokens(subject.length, seed) for seed in range(3)])

        def loss(model: nn.Module) -> mx.array:
            return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")

        model = subject.model
        gradients = dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))
        trainable = dict(tree_flatten(model.trainable_parameters()))
        demand(trainable, "the model has no trainable parameters")
        for path in trainable:
            demand(path in gradients, f"the parameter {path!r} has no gradient")
            largest = number(mx.max(mx.abs(gradients[path])))
            demand(largest > 0, f"the gradient of {path!r} is zero: nothing that the loss sees depends on it")
            demand(bool(mx.all(mx.isfinite(gradients[path])).item()), f"the gradient of {path!r} is not finite")

    def _demand_head(self, subject: Subject, tied: bool) -> None:
        """A token's own logit depends on its embedding, although the prompt lacks the token, only if the head is
        tied."""
        tokens = mx.zeros((1, 4), dtype=mx.int32)
        before = subject.logits(tokens)
        path = next(name for name in subject.arrays if name.endswith("embed_tokens.weight"))
        table = subject.arrays[path]
        replace(subject.model, path, mx.concatenate([table[:-1], table[-1:] + 1]))
        after = subject.logits(tokens)
        replace(subject.model, path, table)
        names = [name for name in subject.arrays if "lm_head" in name.split(".")]
        if tied:
            moved = difference(after[..., -1], before[..., -1]) > self.tolerance
            demand(moved and not names, "the config ties the head to the embedding, but the model does not")
        else:
            message = "the config does not tie the head to the embedding, but the embedding changes the logits"
            demand_close(after[..., -1], before[..., -1], self.tolerance, message)


def _derivative_errors(block: nn.Module, step: Step, x: mx.array, seed: int) -> list[float]:
    """For each token, the difference between the measured and the predicted change of its output, relative to its
    terms."""
    along = mx.random.normal(x.shape, key=mx.random.key(seed)) * mx.sqrt(mx.mean(mx.square(x)))
    measured = (block(x + _STEP * along, step) - block(x - _STEP * along, step)) / (2 * _STEP)
    errors = []
    for token in range(x.shape[1]):
        seen = mx.zeros_like(x)
        seen[:, token] = mx.random.normal((x.shape[-1],), key=mx.random.key(100 + token))
        _, (gradient,) = mx.vjp(lambda x: block(x, step), [x], [seen])
        parts = gradient * along
        error = mx.abs(mx.sum(measured * seen) - mx.sum(parts)) / mx.sqrt(mx.sum(mx.square(parts)))
        errors.append(number(error))
    return errors
