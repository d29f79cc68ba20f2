"""The CPU library in several threads, with teams of several sizes, at every level, and interrupted."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core.cpu import library
from core.cpu.levels import levels_of
from core.cpu.processor import features, machine
from core.cpu_pass import passage
from core.errors import CacheError
from core.generation import generate_tokens
from core.kernels import inference
from core.nn import Decoder
from tests.cpu.models import assert_same, by_library, by_mlx, decoder, needs_library, tokens
from tests.generation.stress import generate_in_threads

pytestmark = needs_library

SIZES = [1, 2, 3, 8]
PROMPTS = [[1, 7, 3, 9, 20], [44, 2, 17, 5, 30, 11, 8, 9, 10], [5]]


def ids_of(model: Decoder, prompt: list[int], count: int = 24) -> list[int]:
    return list(generate_tokens(model, prompt, max_tokens=count))


def resize(threads: int) -> None:
    loaded = library.load_library()
    assert loaded is not None
    loaded.corelm_threads(ctypes.c_int(threads))


@pytest.fixture(autouse=True)
def _team() -> Iterator[None]:
    yield
    resize(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("experts", [0, 6])
def test_teams_of_any_size_compute_the_same_bits(experts: int) -> None:
    """The team grows and shrinks between steps."""
    model = decoder(experts=experts)
    results = []
    for sizes in ([1, 1, 1, 1], [2, 8, 3, 1], [8, 1, 8, 2], [3, 3, 2, 8]):
        cache = model.make_cache(2)
        steps = []
        for seed, (threads, count) in enumerate(zip(sizes, [40, 1, 13, 3], strict=True)):
            resize(threads)
            steps.append(by_library(model, tokens(model, 2, count, seed), cache))
        results.append(np.concatenate(steps, axis=1))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_threads_with_one_model_and_with_two() -> None:
    """Each with caches of its own, while the team changes its size."""
    resize(2)
    models = [decoder(), decoder(1, experts=4)]
    expected = [[(prompt, ids_of(model, prompt)) for prompt in PROMPTS] for model in models]
    others = [
        threading.Thread(target=generate_in_threads, args=(model, pairs, 1), daemon=True)
        for model, pairs in zip(models, expected, strict=True)
    ]
    for other in others:
        other.start()
    for turn in range(21):  # the last size is 1: many threads wait long where there are few cores
        resize(SIZES[turn % len(SIZES)])
        gc.collect()
    generate_in_threads(models[0], expected[0], 1)
    for other in others:
        other.join(60)
        assert not other.is_alive()
    for model, pairs in zip(models, expected, strict=True):
        assert [(prompt, ids_of(model, prompt)) for prompt in PROMPTS] == pairs


def test_a_thread_that_dies_leaves_the_library_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    expected = ids_of(model, PROMPTS[0])
    failure, seen = RuntimeError("a thread's own"), []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_value))

    def die() -> None:
        stream = generate_tokens(model, PROMPTS[1], max_tokens=20)
        next(stream)
        raise failure

    for _ in range(5):
        thread = threading.Thread(target=die)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    assert seen == [failure] * 5
    assert ids_of(model, PROMPTS[0]) == expected


@pytest.mark.parametrize("level", [level.name for level in levels_of(machine()) if level.features <= features()])
def test_every_level_that_this_processor_runs(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = library._open(next(one for one in levels_of(machine()) if one.name == level))
    monkeypatch.setattr(passage, "library", lambda: loaded)
    loaded.corelm_threads(2)
    model = decoder(experts=3)
    ours, theirs = model.make_cache(), model.make_cache()
    for seed, count in enumerate([50, 1, 3, 7]):
        ids = tokens(model, 1, count, seed)
        assert_same(by_library(model, ids, ours), by_mlx(model, ids, theirs), 1e-4 if level == "amx" else 2e-5)


class Interrupting:
    """The library, and Ctrl-C while it computes."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def corelm_forward(self, *arguments: Any) -> None:
        self._loaded.corelm_forward(*arguments)
        raise KeyboardInterrupt


def test_an_interrupt_in_a_pass_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all time is spent in the library: a step that is interrupted there ends first."""
    model = decoder()
    cache, plain = model.make_cache(), model.make_cache()
    for seed, count in enumerate([5, 1, 1]):
        ids = tokens(model, 1, count, seed)
        with monkeypatch.context() as patch:
            loaded = library.load_library()
            patch.setattr(passage, "library", lambda loaded=loaded: Interrupting(loaded))
            with inference(), pytest.raises(KeyboardInterrupt):
                model(ids, cache)
        by_mlx(model, ids, plain)
        assert not cache.failed
        assert cache.length == plain.length
    ids = tokens(model, 1, 2, 9)
    assert_same(by_library(model, ids, cache), by_mlx(model, ids, plain))


def test_a_storm_of_signals() -> None:
    """An interrupt at any moment: a cache holds what it says, or says that it has failed."""
    model = decoder()
    prompt = tokens(model, 1, 30)[0].tolist()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = intact = 0
    try:
        for turn in range(60):
            cache = model.make_cache()
            taken: list[int] = []
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0004 * (turn + 1))
                stream = generate_tokens(model, prompt, max_tokens=200, cache=cache)
                while len(taken) < 200:
                    taken.append(next(stream))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if cache.failed:
                with pytest.raises(CacheError):
                    by_library(model, mx.array([[1]]), cache)
                continue
            intact += 1
            said = [*prompt, *taken][: cache.length]
            if len(said) < cache.length:  # interrupted after a step, before anybody was told of its token
                continue
            plain = model.make_cache()
            if said:
                by_mlx(model, mx.array([said]), plain)
            assert_same(by_library(model, mx.array([[1]]), cache), by_mlx(model, mx.array([[1]]), plain), 1e-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10
    assert intact


FORK = """
import ctypes, os, signal, sys, threading
import mlx.core as mx, numpy as np
from core.cpu.library import load_library
from core.cpu.structures import Matrix, Product

library = load_library()
library.corelm_threads(3)
w, x = np.ones((64, 32), np.float32), np.ones((5, 32), np.float32)
matrix = Matrix(weight=w.ctypes.data, rows=64, columns=32)

def product():
    y = np.zeros((5, 64), np.float32)
    one = Product(ctypes.addressof(matrix), 0, x.ctypes.data, y.ctypes.data, 5, 32, 64)
    library.corelm_multiply(ctypes.byref(one), 1, 0, 0)
    return bool((y == 32).all())

assert product()
stop = False
def busy():
    while not stop:
        product()
thread = threading.Thread(target=busy)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if product() and product() else 1)
    assert os.waitpid(child, 0)[1] == 0
stop = True
thread.join()
assert product()
"""


def test_a_forked_process_has_a_team_of_its_own() -> None:
    """Even when another thread was computing at that moment; MLX itself works in no forked process (core.device)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
