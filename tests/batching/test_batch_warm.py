"""``Batch.warm``: every kind of step is run, and nothing that a user sees changes."""

from __future__ import annotations

import mlx.core as mx
import pytest

import core
from core.batching import admission
from core.batching.warm import run_every_step
from core.kernels.device import current_device
from tests.batching.models import KINDS, model, prompt
from tests.fast.models import build

HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu


@pytest.mark.parametrize("kind", KINDS)
def test_requests_and_prefixes_are_left_alone(kind: str) -> None:
    prefix = core.PrefixCache(1 << 20)
    batch, cold = core.Batch(model(kind), max_rows=3, prefill_chunk=16, prefix=prefix), core.Batch(model(kind))
    waiting = batch.submit(prompt(3, 9), max_tokens=5, temperature=0.0)
    state = mx.random.state[0].tolist()
    batch.warm()
    assert mx.random.state[0].tolist() == state
    assert len(prefix) == 0
    assert not waiting.done
    other = cold.submit(prompt(3, 9), max_tokens=5, temperature=0.0)
    list(batch)
    list(cold)
    assert waiting.result is not None
    assert other.result is not None
    assert waiting.result.token_ids == other.result.token_ids
    assert waiting.id == 0


def test_every_number_of_rows_that_has_kernels_of_its_own_decodes() -> None:
    class Recorder(core.Batch):
        """Counts the rows of each step."""

        def __init__(self, rows: int) -> None:
            super().__init__(model("full"), max_rows=rows, prefill_chunk=32)
            self.decoded: set[int] = set()

        def step(self):
            events = super().step()
            self.decoded.add(len(self._scheduler.running.rows))
            return events

    for rows, expected in ((1, {1}), (5, {1, 5}), (18, {1, 8, 16, 18})):
        batch = Recorder(rows)
        run_every_step(batch, 61, rows, 32)
        assert expected <= batch.decoded
        assert not batch.pending


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = core.Batch(model("full"), max_rows=2, max_bytes=30_000)
    batch.warm()
    assert not batch.pending
    monkeypatch.setattr(admission, "rotation_limit", lambda model: 100)  # as of a model with dynamic frequencies
    core.Batch(model("full"), max_rows=2).warm()


def test_a_model_that_fails_is_told_before_there_are_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = core.Batch(model("full"), max_rows=2)

    def fail(*_arguments: object) -> mx.array:
        raise ValueError("this model computes nothing")

    monkeypatch.setattr(type(batch._model), "hidden_states", fail)
    with pytest.raises(ValueError, match="computes nothing"):
        batch.warm()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
def test_nothing_is_compiled_afterwards() -> None:
    lm = build(bits=4, head_dim=64)
    batch = core.Batch(lm, max_rows=12, prefill_chunk=128)
    batch.warm()
    device = current_device()
    assert device is not None
    if device.compiler is None:
        pytest.skip("MLX compiles the kernels itself here")
    known = set(device.compiler.prepared)
    for place in range(20):
        batch.submit(list(range(1, 30 + 17 * place)), max_tokens=10 + place, temperature=0.7 * (place % 2), seed=place)
    list(batch)
    assert set(device.compiler.prepared) == known
