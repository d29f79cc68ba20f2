"""Ctrl-C may come between any two lines of a step: no request is lost, told of twice, or left holding anything."""

from __future__ import annotations

import random

import pytest

from tests.batching.interrupts import Lines, Schedule

SAMPLES = 10  # of each way; a run of every line is tens of thousands


@pytest.mark.parametrize("loop", [False, True], ids=["steps", "loop"])
@pytest.mark.parametrize("kind", ["full", "state"])
def test_an_interrupt_at_any_line(kind: str, loop: bool) -> None:
    counted = Lines()
    calm = Schedule(kind, counted, loop=loop)
    calm.play()
    calm.check()
    assert calm.interrupts == 0
    draw = random.Random(7)
    for number in range(SAMPLES):
        at = sorted(draw.sample(range(counted.count), 1 + number % 2 * 2))
        if number % 4 == 1:
            at[1:] = [at[0] + draw.randrange(1, 60), at[0] + 61]  # while the first one is dealt with
        lines = Lines(*at)
        schedule = Schedule(kind, lines, loop=loop)
        try:
            schedule.play()
            schedule.check()
        except AssertionError as error:
            raise AssertionError(f"interrupted at {at}, {lines.where}: {error}") from error
        assert schedule.interrupts
