"""Threads that generate with one model do not disturb each other; where MLX cannot be used, one error says so."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import core
from core.errors import UsageError
from tests.generation.stress import generate_in_threads
from tests.generation.test_loop import naive


def test_two_threads_snapshots_and_abandoned_generations(model: core.nn.Decoder) -> None:
    prompts = [[1, 7, 3, 9, 20], [44, 2, 17, 5, 30, 11, 8, 9, 10]]
    generate_in_threads(model, [(prompt, naive(model, prompt, 24)) for prompt in prompts], rounds=6)


def test_a_lazy_model_in_another_thread_is_one_error() -> None:
    """Until it has been used in its own."""
    lm = core.load("demo:mistral", lazy=True, tokenizer=False)
    batch = core.Batch(lm)
    request = batch.submit([1, 5, 7], max_tokens=3)
    errors: list[Exception] = []

    def use() -> None:
        list(batch)
        try:
            lm.generate([1, 5, 7], max_tokens=3)
        except UsageError as error:
            errors.append(error)

    for expected in (1, 1):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert len(errors) == expected
        lm.generate([1, 5, 7], max_tokens=3)
    assert isinstance(request.error, UsageError)
    for error in (request.error, *errors):
        assert "another thread" in str(error)
        assert "lazy=True" in str(error)


FORK = """
import os, sys, core
import mlx.core as mx
from core.errors import UsageError
lm = core.load("demo:mistral", tokenizer=False)
batch = core.Batch(lm)
request = batch.submit([1, 5], max_tokens=2)
lm.generate([1, 5], max_tokens=2)
directory = sys.argv[1]
cache = lm.make_cache()
lm.model(mx.array([[1, 5, 7]]), cache=cache)
core.save_cache(directory + "/cache", cache, lm, [1, 5, 7])
uses = [
    lambda: lm.generate([1, 5], max_tokens=2),
    batch.step,
    lambda: core.evaluate(lm, [1, 5, 7]),
    lambda: core.load("demo:mistral"),
    lambda: core.convert("demo:mistral", directory + "/converted"),
    lambda: core.save(lm, directory + "/saved"),
    lambda: core.save_cache(directory + "/cache2", cache, lm, [1, 5, 7]),
    lambda: core.load_cache(directory + "/cache", lm),
]
child = os.fork()
if child == 0:
    for use in uses:
        try:
            use()
        except UsageError as error:
            assert "forked" in str(error) and "spawn" in str(error)
            continue
        os._exit(3)
    os._exit(7)
_, status = os.waitpid(child, 0)
list(batch)
assert request.result is not None
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_is_told_so(tmp_path: Path) -> None:
    """It would hang: MLX's threads have stayed behind."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 7, done.stderr
