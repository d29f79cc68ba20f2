"""The cores that a process may use: the scheduler's word, the control groups' limits, and the user's wish."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core import cores
from core.cores import asked_threads, usable_cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores whose control groups are files in this folder; ``self`` says which the process is in."""
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_groups(groups: Path) -> None:
    assert usable_cores() == 16


@pytest.mark.parametrize(
    ("limit", "count"), [("max 100000", 16), ("200000 100000", 2), ("250000 100000", 3), ("1000 100000", 1), ("x", 16)]
)
def test_version_2(groups: Path, limit: str, count: int) -> None:
    write(groups / "self", "0::/user/session\n")
    write(groups / "user/session/cpu.max", "max 100000\n")
    write(groups / "user/cpu.max", f"{limit}\n")
    assert usable_cores() == count


def test_version_2_in_a_container_that_is_its_own_root(groups: Path) -> None:
    write(groups / "self", "0::/../elsewhere\n")
    write(groups / "cpu.max", "350000 100000\n")
    assert usable_cores() == 4


@pytest.mark.parametrize(("quota", "count"), [("-1", 16), ("150000", 2), ("2000000", 16)])
def test_version_1(groups: Path, quota: str, count: int) -> None:
    write(groups / "self", "5:cpuset:/x\n3:cpu,cpuacct:/box\n0::/\n")
    write(groups / "cpu/box/cpu.cfs_quota_us", quota)
    write(groups / "cpu/box/cpu.cfs_period_us", "100000\n")
    assert usable_cores() == count


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("2,4", 2), ("99", 16), ("0", 16), ("-1", 16), ("many", 16)])
def test_what_the_user_asks_for(groups: Path, monkeypatch: pytest.MonkeyPatch, text: str, count: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    monkeypatch.setenv("OTHER", "5")
    assert usable_cores() == count
    assert usable_cores("OTHER") == 5
    assert asked_threads("NOT_SET") is None


def test_where_the_scheduler_says_nothing(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
