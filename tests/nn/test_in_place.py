"""Steps that write keys and values in place, by a kernel that MLX knows nothing of, change nobody else's cache."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core.nn.key_values as key_values
from core.kernels import inference
from core.kernels.decode_attention import _reference
from core.nn import Cache, CacheSpec
from core.nn.step import StepPlan

HEADS, SIZE = 2, 8


class InPlace:
    """What the CUDA kernel does, at once and in NumPy: the buffers that MLX believes unchanged are written."""

    calls = 0

    def launched(self, *inputs: mx.array) -> mx.array:
        InPlace.calls += 1
        mx.eval(*inputs)
        _, new_key, new_value, keys, values, bounds = inputs
        result = _reference(*inputs)
        mx.eval(result)
        for buffer, new in ((keys, new_key), (values, new_value)):
            memory = np.array(buffer, copy=False)
            for row, (_, _, end) in enumerate(bounds.tolist()):
                memory[row, :, end - 1] = np.array(new)[row, :, 0]
        return result


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    InPlace.calls = 0


def spec(window: int | None) -> CacheSpec:
    return CacheSpec.full(HEADS, SIZE) if window is None else CacheSpec.sliding(window, HEADS, SIZE)


def attend(cache: Cache, seq: int, seed: int, window: int | None) -> mx.array:
    keys = mx.random.split(mx.random.key(seed), 3)
    q, k, v = (mx.random.normal((cache.batch, HEADS, seq, SIZE), key=key) for key in keys)
    step = StepPlan(cache.batch, seq, 1, cache).steps()[0]
    with inference():
        y = step.attend(q, k, v, scale=SIZE**-0.5, window=window)
    cache.commit()
    return y


def no_kernel(*_: object, **__: object) -> None:
    return None


@settings(max_examples=40, deadline=None)
@given(
    actions=st.lists(
        st.sampled_from(["step", "step", "step", "chunk", "copy", "swap", "rewind", "arrays", "forget"]), max_size=24
    ),
    batch=st.integers(1, 3),
    window=st.sampled_from([None, 6]),
)
def test_any_history_is_that_of_ordinary_steps(actions: list[str], batch: int, window: int | None) -> None:
    """Copies are used later on, so that what was written behind their back would show."""
    pairs = [(Cache([spec(window)], batch), Cache([spec(window)], batch))]
    held: list[tuple[mx.array, np.ndarray]] = []
    with pytest.MonkeyPatch.context() as patch:
        for seed, action in enumerate(["chunk", *actions]):
            mine, plain = pairs[-1]
            if action == "copy":
                pairs.append((mine.copy(), plain.copy()))
            elif action == "swap":
                pairs.insert(0, pairs.pop())
            elif action == "forget" and len(pairs) > 1:
                pairs.pop()
            elif action == "rewind" and mine.length > 1:
                mine.rewind(1)
                plain.rewind(1)
            elif action == "arrays":
                length = mine.length - mine.spans[mine.blocks[0].reach].base[0]
                held += [(a[:, :, :length], np.array(a)[:, :, :length].copy()) for a in mine.arrays()]
            elif action in ("step", "chunk"):
                seq = 1 if action == "step" else 3
                patch.setattr(key_values, "decode_attention_kernel", no_kernel)
                expected = attend(plain, seq, seed, window)
                patch.setattr(key_values, "decode_attention_kernel", lambda *_, **__: InPlace())
                found = attend(mine, seq, seed, window)
                np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)
    for array, content in held:
        np.testing.assert_array_equal(np.array(array), content)


def test_it_is_used_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one owns its buffers only where nobody has asked for them since they were written."""
    monkeypatch.setattr(key_values, "decode_attention_kernel", lambda *_, **__: InPlace())
    cache = Cache([spec(None)], 2)
    attend(cache, 3, 0, None)
    attend(cache, 1, 1, None)
    attend(cache, 1, 2, None)
    assert InPlace.calls == 2
    assert cache.nbytes == sum(array.nbytes for array in cache.copy().arrays())
    cache.arrays()
    attend(cache, 1, 3, None)
    assert InPlace.calls == 2
    attend(cache, 1, 4, None)
    assert InPlace.calls == 3


def test_asking_for_the_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_values, "decode_attention_kernel", lambda *_, **__: InPlace())
    cache = Cache([spec(None)], 2)
    attend(cache, 3, 0, None)
    for seed in range(1, 4):
        assert cache.nbytes > 0
        attend(cache, 1, seed, None)
        assert InPlace.calls == seed


def test_arrays_that_were_asked_for_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_values, "decode_attention_kernel", lambda *_, **__: InPlace())
    cache = Cache([spec(None)], 1)
    for seed, seq in enumerate((4, 1, 1)):
        attend(cache, seq, seed, None)
    arrays = [array[:] for array in cache.arrays()]  # the objects themselves follow the cache
    before = [np.array(array) for array in arrays]
    cache.rewind(2)
    for seed in range(3, 7):
        attend(cache, 1, seed, None)
    for array, content in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(np.array(array), content)


def test_the_step_after_a_rewind_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that was taken back may not have been computed yet, and nothing orders it before the next."""
    monkeypatch.setattr(key_values, "decode_attention_kernel", lambda *_, **__: InPlace())
    cache = Cache([spec(None)], 1)
    attend(cache, 3, 0, None)
    attend(cache, 1, 1, None)
    assert InPlace.calls == 1
    cache.rewind(1)
    attend(cache, 1, 2, None)
    assert InPlace.calls == 1


def test_training_never_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_values, "decode_attention_kernel", lambda *_, **__: InPlace())
    cache = Cache([spec(None)], 1)
    attend(cache, 3, 0, None)
    q = mx.random.normal((1, HEADS, 1, SIZE))
    StepPlan(1, 1, 1, cache).steps()[0].attend(q, q, q, scale=SIZE**-0.5)
    assert InPlace.calls == 0
