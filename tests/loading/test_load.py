"""What a load does beside loading: it leaves random numbers alone, reads lazily where asked, gives what can train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import core
from core.errors import UsageError
from core.loading import build
from core.weights.tree import all_arrays
from tests.fixtures import STORIES, oracle
from tests.fixtures.variants import variant
from tests.weights.test_quantized import CASES


@pytest.fixture
def seeded() -> Iterator[None]:
    """A random state that no earlier test decides, put back afterwards."""
    mx.random.seed(1234)
    yield
    mx.random.seed(0)


@pytest.mark.parametrize("name", ["mistral_swa8", "mixtral_swa8"])
@pytest.mark.usefixtures("seeded")
def test_a_load_leaves_the_random_state_alone(name: str) -> None:
    expected = mx.random.normal((4,)).tolist(), mx.random.normal((4,)).tolist()
    mx.random.seed(1234)
    first = mx.random.normal((4,)).tolist()
    core.load(oracle(name), tokenizer=False)
    core.plan(oracle(name))
    assert (first, mx.random.normal((4,)).tolist()) == expected


@pytest.mark.usefixtures("seeded")
def test_a_build_draws_from_the_random_state() -> None:
    config = {"model_type": "mistral", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    first = build(config).model.lm_head.weight
    mx.random.seed(1234)
    assert mx.array_equal(first, build(config).model.lm_head.weight).item()
    assert not mx.array_equal(first, build(config).model.lm_head.weight).item()


def test_a_lazy_load_is_the_same_model() -> None:
    lazy, eager = (core.load(STORIES, lazy=lazy) for lazy in (True, False))
    assert lazy.report.seconds == 0
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(lazy.model(tokens), eager.model(tokens)).item()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_dtype_may_be_given_by_its_name(dtype: mx.Dtype) -> None:
    name = str(dtype).removeprefix("mlx.core.")
    loaded = core.load(STORIES, tokenizer=False, dtype=name)
    assert loaded.report.plan.compute_dtype == dtype
    assert loaded.model.norm.weight.dtype == dtype


@pytest.mark.parametrize("dtype", ["float8", "int32", "", 16, np.float16], ids=str)
def test_what_is_no_dtype_is_refused(dtype: Any) -> None:
    for refuses in (core.load, core.plan):
        with pytest.raises(UsageError, match="float32 or float16 or bfloat16"):
            refuses(STORIES, dtype=dtype)


def test_progress_ends_at_the_plans_bytes() -> None:
    calls: list[tuple[int, int]] = []
    lm = core.load(oracle("mixtral_swa8"), tokenizer=False, progress=lambda done, total: calls.append((done, total)))
    total = lm.report.plan.bytes
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert len(calls) >= lm.config.num_hidden_layers


def test_two_loads_share_nothing() -> None:
    one, other = core.load(STORIES), core.load(STORIES)
    one.model.norm.weight = one.model.norm.weight * 0
    assert mx.any(other.model.norm.weight != 0).item()


def loss_of(model: nn.Module, tokens: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")


TOKENS = mx.random.randint(3, 200, (4, 24), key=mx.random.key(5))


def train(model: nn.Module, steps: int = 8) -> tuple[list[float], dict[str, mx.array]]:
    """Losses, and the first step's gradients by path."""
    model.train()
    optimizer = optim.Adam(learning_rate=3e-3)
    step = nn.value_and_grad(model, loss_of)
    losses, first = [], {}
    for _ in range(steps):
        loss, gradients = step(model, TOKENS)
        first = first or dict(tree_flatten(gradients))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    return losses, first


@pytest.mark.parametrize("name", ["mistral_swa8", "mistral_tied", "mixtral_8e_top3", "mixtral_swa8"])
def test_training_reduces_the_loss_through_every_parameter(name: str) -> None:
    """96 tokens to 2 or 3 of 8 experts: each expert is reached, and so is the router."""
    model = core.load(oracle(name), tokenizer=False).model
    losses, gradients = train(model)
    assert losses[-1] < 0.8 * losses[0]
    assert gradients.keys() == all_arrays(model).keys()
    for path, gradient in gradients.items():
        assert mx.isfinite(gradient).all().item(), path
        if "experts" in path:
            assert (mx.abs(gradient).max(axis=(1, 2)) > 0).all().item(), path
        assert mx.abs(gradient).max().item() > 0, path


@pytest.mark.parametrize("name", ["mistral_swa8", "mixtral_swa8"])
def test_a_gradient_is_the_slope_of_the_loss(name: str, tmp_path: Path) -> None:
    """Central differences along a random direction, in one parameter of each kind.

    Every token goes to all experts here: where it goes to some, the loss jumps when a small step changes which.
    """
    changes = {"num_experts_per_tok": 8} if name.startswith("mixtral") else {}
    model = core.load(variant(oracle(name), tmp_path / "model", config=changes), tokenizer=False).model
    _, gradients = nn.value_and_grad(model, loss_of)(model, TOKENS)
    slopes = dict(tree_flatten(gradients))
    for path in [path for path in slopes if path.startswith(("layers.0.", "embed", "lm_head", "norm"))]:
        parameter = all_arrays(model)[path]
        direction = mx.random.normal(parameter.shape, key=mx.random.key(len(path)))
        direction = direction / mx.linalg.norm(direction.flatten())
        losses = []
        for sign in (1, -1):
            model.load_weights([(path, parameter + sign * 1e-2 * direction)], strict=False)
            losses.append(loss_of(model, TOKENS).item())
        model.load_weights([(path, parameter)], strict=False)
        measured = (losses[0] - losses[1]) / 2e-2
        expected = (slopes[path] * direction).sum().item()
        assert measured == pytest.approx(expected, rel=0.05, abs=2e-3), path


@pytest.mark.parametrize("name", ["4 bits", "mixed_4_6", "experts apart, overrides", "experts in nvfp4"])
def test_gradients_pass_through_quantized_matrices(name: str, tmp_path: Path) -> None:
    """Packed matrices are frozen, and what lies before them learns."""
    model = core.load(CASES[name].write(tmp_path).quantized, tokenizer=False).model
    losses, gradients = train(model)
    assert losses[-1] < losses[0]
    norms = {path for path in all_arrays(model) if path.endswith("norm.weight")}
    assert norms <= gradients.keys()
    assert not [path for path in gradients if path.endswith(("scales", "biases"))]
    for path in norms:
        assert mx.abs(gradients[path]).max().item() > 0, path


def test_stray_files_are_reported_and_not_read(tmp_path: Path) -> None:
    path = variant(oracle("mistral_sharded"), tmp_path / "model")
    (path / "old.safetensors").write_bytes(b"not even a header")
    (path / "modeling_mistral.py").write_text("raise SystemExit('code of a checkpoint ran')")
    lm = core.load(path, tokenizer=False)
    assert lm.report.stray_files == ("old.safetensors",)
    assert "old.safetensors" in str(lm.report)
