"""Rows that come, go and grow attend to their own keys and to nothing else, by the definition; and what that costs."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from core.batching.groups import Groups
from core.device import backend
from core.nn import Cache, CacheSettings, CacheSpec
from core.nn.groups import CacheGroups
from core.nn.rows import RowTemplate
from core.nn.step import StepPlan
from tests.batching.models import CONFIG, model, prompt
from tests.nn.definition import HEADS, KV_HEADS, Row, Sees, first_and_last, last

DIM = 8
KINDS: dict[str, tuple[CacheSpec, int | None, CacheSettings, Sees]] = {
    "full": (CacheSpec.full(KV_HEADS, DIM), None, CacheSettings(), last(None)),
    "window": (CacheSpec.sliding(5, KV_HEADS, DIM), 5, CacheSettings(), last(5)),
    "limit": (CacheSpec.full(KV_HEADS, DIM), None, CacheSettings(max_kv_tokens=9, kept_tokens=3), first_and_last(3, 9)),
}


class Attending:
    """A model of one block that only attends, to random keys."""

    def __init__(self, kind: str, seed: int) -> None:
        self.spec, self.window, self.settings, self.sees = KINDS[kind]
        self.rng = np.random.default_rng(seed)

    def make_cache(self, rows: int) -> Cache:
        return Cache([self.spec], rows, self.settings)

    def hidden_states(self, tokens: mx.array, cache: Cache | None = None) -> mx.array:
        assert cache is not None
        batch, seq = tokens.shape
        parts = [mx.zeros((batch, heads, seq, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        out = StepPlan(batch, seq, 1, cache).steps()[0].attend(*parts, scale=1.0, window=self.window)
        cache.commit()
        return out

    def take(self, cache: Cache | CacheGroups, rows: list[Row | None], seq: int, counts: list[int] | None) -> None:
        """A step of random tokens; each real one of a row must attend as the definition says."""
        batch = len(rows)
        q = self.rng.standard_normal((batch, HEADS, seq, DIM), dtype=np.float32)
        k, v = (self.rng.standard_normal((batch, KV_HEADS, seq, DIM), dtype=np.float32) for _ in range(2))
        plan = cache.plan(batch, seq, 1) if isinstance(cache, CacheGroups) else StepPlan(batch, seq, 1, cache, counts)
        step, starts = plan.steps()[0], list(cache.lengths)
        assert step.positions.tolist() == starts
        out = np.array(step.attend(mx.array(q), mx.array(k), mx.array(v), scale=DIM**-0.5, window=self.window))
        cache.commit()
        for place, row in enumerate(rows):
            if row is None:
                continue
            assert starts[place] == len(row.keys)
            for token in range(seq if counts is None else counts[place]):
                row.keys.append(k[place, :, token])
                row.values.append(v[place, :, token])
                expected = row.attend(q[place, :, token], starts[place] + token, self.sees)
                np.testing.assert_allclose(out[place, :, token], expected, atol=2e-6, rtol=1e-5)


class Ids:
    """A ``Row`` of the definition as a key."""

    def __init__(self) -> None:
        self.row = Row()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_rows_attend_to_their_own_tokens(kind: str, data: st.DataObject, seed: int) -> None:
    attending = Attending(kind, seed)
    groups: Groups[Ids] = Groups(RowTemplate(attending, attending.make_cache), attending.make_cache)
    live: list[Ids] = []
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["join", "join", "leave", "extract", "step", "step", "step"])):
            case "join":
                lengths = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=3))
                cache, new = attending.make_cache(len(lengths)), [Ids() for _ in lengths]
                if max(lengths):
                    attending.take(cache, [each.row for each in new], max(lengths), lengths)
                totals = [length + data.draw(st.integers(1, 40)) for length in lengths]
                groups.join(new, totals, cache)
                live += new
            case "leave" if live:
                groups.leave(live.pop(data.draw(st.integers(0, len(live) - 1))))
            case "extract" if live:
                of = live[data.draw(st.integers(0, len(live) - 1))]
                attending.take(groups.extract(of), [Row(list(of.row.keys), list(of.row.values))], 3, None)
            case "step" if live:
                for _ in range(data.draw(st.integers(1, 9))):
                    groups.settle()
                    attending.take(CacheGroups(groups.caches), [ids and ids.row for ids in groups.places], 1, None)
                assert {ids for ids in groups.places if ids is not None} == set(live)
    for each in live:
        groups.leave(each)
    groups.settle()
    assert groups.nbytes == 0


def test_a_long_row_is_not_paid_for_by_short_ones() -> None:
    lm = model("full")
    batch = core.Batch(lm, max_rows=40)
    batch.submit(prompt(1, 900), max_tokens=50)
    for i in range(31):
        batch.submit(prompt(i, 4), max_tokens=60)
    while batch._scheduler.waiting or batch._scheduler.prompts.rows or batch._inbox:
        batch.step()
    batch.step()
    row = batch._scheduler._template.row_bytes
    assert len(batch._scheduler.running.rows) == 32
    assert batch._scheduler.running.groups.nbytes <= row(1024) + 1.25 * 31 * row(64)
    assert 32 * row(1024) > 6 * batch._scheduler.running.groups.nbytes
    batch.close()


@pytest.mark.parametrize("window", [None, 4096])
def test_a_step_writes_in_place(window: int | None) -> None:
    """A copy of one block's keys would show in the peak of the memory; rows stand at different positions."""
    wide = core.build(CONFIG | {"num_key_value_heads": 4, "head_dim": 64, "sliding_window": window}).model
    if backend() == "cuda":  # there, the kernel that writes in place takes bfloat16
        wide.set_dtype(mx.bfloat16)
    mx.eval(wide.parameters())
    batch = core.Batch(wide, max_rows=8)
    for i in range(8):
        batch.submit(prompt(i, 300 + 20 * i), max_tokens=100)
    while len(batch._scheduler.running.rows) < 8:
        batch.step()
    buffers = [array.nbytes for array in batch._scheduler.running.groups.caches[0].arrays()]
    for _ in range(8):  # the first copies what was read; a kernel's first launch compares it with its reference
        batch.step()
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(20):
        batch.step()
    mx.synchronize()
    assert mx.get_peak_memory() - before < min(buffers) / 2
    batch.close()


def test_free_places_are_used_again_and_given_back() -> None:
    batch = core.Batch(model("full"), max_rows=16)
    stays = batch.submit(prompt(0, 4), max_tokens=500)
    largest = 0
    for _ in range(6):
        guests = [batch.submit(prompt(i, 4), max_tokens=5) for i in range(15)]
        while not all(guest.done for guest in guests):
            batch.step()
            largest = max(largest, len(batch._scheduler.running.groups.places))
    assert largest <= 20, "16 rows, and a quarter more"
    for _ in range(3):
        batch.step()
    assert len(batch._scheduler.running.groups.places) == 1
    stays.cancel()
    list(batch)


def test_a_free_place_does_not_make_rows_uneven() -> None:
    """Rows at one position take the cheaper way to write and to mask; a place that nobody has must not prevent it."""
    batch = core.Batch(model("full"), max_rows=8)
    requests = [batch.submit(prompt(i, 3), max_tokens=30) for i in range(8)]
    while not batch._scheduler.running.rows:
        batch.step()
    requests[3].cancel()
    free = []
    for _ in range(12):
        batch.step()
        assert len(set(batch._scheduler.running.groups.caches[0].lengths)) == 1
        free.append(batch._scheduler.running.groups.places.count(None))
    assert 1 in free, "seven rows of eight do not move for the one that has gone"
    batch.close()
