"""Threads that generate with one model at once do not disturb each other."""

from __future__ import annotations

import core
from tests.generation.stress import generate_in_threads
from tests.generation.test_loop import naive


def test_two_threads_snapshots_and_abandoned_generations(model: core.nn.Decoder) -> None:
    prompts = [[1, 7, 3, 9, 20], [44, 2, 17, 5, 30, 11, 8, 9, 10]]
    generate_in_threads(model, [(prompt, naive(model, prompt, 24)) for prompt in prompts], rounds=6)
