"""A checkpoint appears whole under its name, or not at all; what was there stays, unless it is replaced on purpose."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import core
from core.errors import SaveError, UsageError
from core.saving import destination, plan_conversion, rename
from tests.fixtures import oracle
from tests.saving.compare import assert_same_tensors

ROOT = Path(__file__).resolve().parents[2]
SOURCE = oracle("mistral_swa8")
RUN, OTHER_RUN = "0123456789ab", "ba9876543210"


@pytest.fixture(params=["system", "plain"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's calls for taking no name from anyone, and without them, as on some file systems."""
    if request.param == "plain":
        monkeypatch.setattr(rename, "_call", lambda: None)
    return str(request.param)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    core.convert(SOURCE, tmp_path / "out")  # an empty directory holds nothing to lose
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SaveError, match="exists already"):
        core.convert(SOURCE, tmp_path / "out")
    with pytest.raises(SaveError, match="exists already"):
        core.save(core.load(SOURCE, tokenizer=False), tmp_path / "out")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_name_that_no_file_can_have() -> None:
    demo = core.load("demo:mistral")
    for write in (lambda place: core.convert("demo:mistral", place), lambda place: core.save(demo, place)):
        with pytest.raises(SaveError, match="is not a file name: it holds a NUL"):
            write("a\0b")


def test_force_replaces_the_whole_directory_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    core.convert(oracle("mixtral_swa8"), tmp_path / "out", max_shard_size=300_000)
    core.convert(SOURCE, tmp_path / "out", force=True)
    assert_same_tensors(SOURCE, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_force_replaces_no_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("home", "file"):
        with pytest.raises(SaveError, match="is not a checkpoint, and is not replaced"):
            core.convert(SOURCE, tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_source_and_destination_are_two_places(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "models" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "models" / "a")
    for place in ("models/a", "models/a/b", "link", "models"):
        with pytest.raises(UsageError, match="the destination"):
            core.convert(tmp_path / "models" / "a", tmp_path / place, force=True)
    with pytest.raises(UsageError, match="the destination"):
        core.save(core.load(tmp_path / "models" / "a", tokenizer=False), tmp_path / "link", force=True)
    with pytest.raises(SaveError, match="parent directory does not exist"):
        core.convert(SOURCE, tmp_path / "no" / "such")
    assert_same_tensors(SOURCE, tmp_path / "models" / "a")


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(SaveError, match="not enough room") as caught:
        core.convert(SOURCE, tmp_path / "out")
    assert caught.value.found == "100,000 bytes free"
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000));"
        "from core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-W", "error", "-c", code, "convert", str(SOURCE), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "model.safetensors: cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_and_what_it_was_replacing_comes_back(tmp_path: Path) -> None:
    (tmp_path / f".out.partial-{RUN}").mkdir()
    (tmp_path / f".out.partial-{RUN}" / "model.safetensors").write_text("half")
    (tmp_path / f".other.partial-{RUN}").mkdir()
    core.convert(SOURCE, tmp_path / f".out.replaced-{RUN}")  # killed between its two renames
    with pytest.raises(SaveError, match="exists already"):
        core.convert(SOURCE, tmp_path / "out")
    assert_same_tensors(SOURCE, tmp_path / "out")
    core.convert(SOURCE, tmp_path / "out", force=True)
    assert_same_tensors(SOURCE, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".other.partial-{RUN}", "out"]


def test_what_was_replaced_is_removed_only_where_its_replacement_has_arrived(tmp_path: Path) -> None:
    core.convert(SOURCE, tmp_path / "out")
    for number in (RUN, OTHER_RUN):
        (tmp_path / f".out.replaced-{number}").mkdir()
    (tmp_path / f".out.replaced-{RUN}" / "precious").write_text("")
    (tmp_path / f".out.partial-{RUN}").mkdir()  # what is at the place did not come from this run
    core.convert(SOURCE, tmp_path / "out", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", f"out.before-{RUN}"]
    assert (tmp_path / f"out.before-{RUN}" / "precious").exists()


def test_directories_that_are_only_called_alike_stay(tmp_path: Path) -> None:
    names = [".out.replaced-backup", ".out.partial-1", ".out.partial-0123456789ABCDEF", f".xout.partial-{RUN}"]
    for name in names:
        (tmp_path / name).mkdir()
    core.convert(SOURCE, tmp_path / "out")
    core.convert(SOURCE, tmp_path / "out", force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", *names}


def test_a_dry_run_neither_renames_nor_removes(tmp_path: Path) -> None:
    core.convert(SOURCE, tmp_path / f".out.replaced-{RUN}")
    (tmp_path / f".out.partial-{RUN}").mkdir()
    with pytest.raises(SaveError, match="exists already"):  # as the run itself would say
        plan_conversion(SOURCE, tmp_path / "out")
    plan_conversion(SOURCE, tmp_path / "out", force=True)
    core.convert(SOURCE, tmp_path / "there")
    (tmp_path / f".there.replaced-{RUN}").mkdir()
    plan_conversion(SOURCE, tmp_path / "there", force=True)
    names = [f".out.partial-{RUN}", f".out.replaced-{RUN}", f".there.replaced-{RUN}", "there"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_meanwhile_is_not_replaced(how: str, force: bool, tmp_path: Path) -> None:
    """A file, a directory of something else and, unless it is forced, a model, a link and an empty directory."""
    place = tmp_path / "out"
    makes = {
        "file": lambda: place.write_text("only copy"),
        "directory": lambda: (place.mkdir(), (place / "thesis.txt").write_text("only copy")),
    }
    if not force:
        makes |= {"model": lambda: shutil.copytree(SOURCE, place), "empty": place.mkdir}
        makes["link"] = lambda: place.symlink_to(tmp_path / "elsewhere")
    for name, make in makes.items():
        before: list[object] = []

        def appear(done: int, total: int, make: Callable[[], object] = make, before: list[object] = before) -> None:
            if not before:
                make()
                before.append(_inventory(tmp_path))

        with pytest.raises(
            SaveError, match=r"appeared while this was written|is not a checkpoint, and is not replaced"
        ):
            core.convert(SOURCE, place, force=force, progress=appear)
        assert [_inventory(tmp_path)] == before, name
        _remove(place)


def test_a_model_that_appears_meanwhile_is_replaced_by_force(how: str, tmp_path: Path) -> None:
    def appear(done: int, total: int) -> None:
        if not (tmp_path / "out").exists():
            shutil.copytree(oracle("mixtral_swa8"), tmp_path / "out")

    core.convert(SOURCE, tmp_path / "out", force=True, progress=appear)
    assert_same_tensors(SOURCE, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_stops_being_a_checkpoint_is_not_replaced(how: str, tmp_path: Path) -> None:
    core.convert(SOURCE, tmp_path / "out")

    def change(done: int, total: int) -> None:
        if (tmp_path / "out" / "config.json").exists():
            _remove(tmp_path / "out")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.txt").write_text("only copy")

    with pytest.raises(SaveError, match="is not a checkpoint, and is not replaced"):
        core.convert(SOURCE, tmp_path / "out", force=True, progress=change)
    assert _inventory(tmp_path) == ["out/thesis.txt"]


def test_what_comes_between_the_last_look_and_the_exchange_is_given_back(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.convert(SOURCE, tmp_path / "out")
    look = destination._check_replaceable

    def late(directory: Path, place: Path) -> None:
        look(directory, place)
        if directory == place and (place / "config.json").exists():
            _remove(place)
            place.mkdir()
            (place / "thesis.txt").write_text("only copy")

    monkeypatch.setattr(destination, "_check_replaceable", late)
    with (
        pytest.raises(SaveError, match="is not a checkpoint, and is not replaced"),
        destination.new_directory(tmp_path / "out", force=True),
    ):
        pass
    assert _inventory(tmp_path) == ["out/thesis.txt"]


def test_what_takes_the_name_between_two_renames_stays_and_so_does_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "_call", lambda: None)  # only then there are two
    core.convert(SOURCE, tmp_path / "out")
    ordinary = rename.rename_new

    def taken(directory: Path, name: Path) -> None:
        if ".partial-" in directory.name:
            name.mkdir()
            (name / "thesis.txt").write_text("only copy")
        ordinary(directory, name)

    monkeypatch.setattr(destination, "rename_new", taken)
    with pytest.raises(SaveError, match="has appeared while this was written"):
        core.convert(SOURCE, tmp_path / "out", force=True)
    aside, place = sorted(tmp_path.iterdir(), key=lambda path: path.name, reverse=True)
    assert _inventory(place) == ["thesis.txt"]
    assert aside.name.startswith("out.before-")
    assert_same_tensors(SOURCE, aside)


def test_of_two_runs_one_wins_and_the_other_says_so(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either has begun to write: no lock tells them of each other."""
    monkeypatch.setattr(destination, "remove_leftovers", lambda place: None)

    def other(done: int, total: int) -> None:
        if not (tmp_path / "out").exists():
            core.convert(oracle("mixtral_swa8"), tmp_path / "out")

    with pytest.raises(SaveError, match="has appeared while this was written"):
        core.convert(SOURCE, tmp_path / "out", progress=other)
    assert_same_tensors(oracle("mixtral_swa8"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_whose_directory_was_taken_for_a_leftover_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run removes it between its making and its locking."""
    flock = fcntl.flock

    def late(lock: int, how: int) -> None:
        for partial in tmp_path.glob(".out.partial-*"):
            partial.rmdir()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(SaveError, match="is being written by another process"):
        core.convert(SOURCE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_two_runs_for_one_place_do_not_meet(tmp_path: Path) -> None:
    other = tmp_path / f".out.partial-{RUN}"
    other.mkdir()
    lock = os.open(other, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(SaveError, match="is being written by another process"):
            core.convert(SOURCE, tmp_path / "out")
    finally:
        os.close(lock)
    assert other.is_dir()


def test_a_failed_rename_puts_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rename, "_call", lambda: None)
    core.convert(oracle("mixtral_swa8"), tmp_path / "out")
    ordinary: Callable[[Path, Path], Path] = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return ordinary(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SaveError, match="Input/output error"):
        core.convert(SOURCE, tmp_path / "out", force=True)
    assert_same_tensors(oracle("mixtral_swa8"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_is_given_only_where_it_is_free(how: str, tmp_path: Path) -> None:
    for name in ("new", "full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    before = _inventory(tmp_path)
    for name in ("full", "empty", "file", "link"):
        with pytest.raises(OSError, match=name) as caught:
            rename.rename_new(tmp_path / "new", tmp_path / name)
        assert caught.value.errno in rename.TAKEN
    assert _inventory(tmp_path) == before
    rename.rename_new(tmp_path / "new", tmp_path / "free")
    assert "free" in _inventory(tmp_path)
    with pytest.raises(FileNotFoundError):
        rename.rename_new(tmp_path / "new", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO])
def test_a_system_that_has_not_the_call(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As old kernels, network file systems and containers answer; but an error of the disk is an error."""

    def refuse(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(rename, "_call", lambda: refuse)
    (tmp_path / "old").mkdir()
    if number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)):
            rename.rename_new(tmp_path / "old", tmp_path / "new")
        assert _inventory(tmp_path) == ["old"]
        return
    assert not rename.exchange(tmp_path / "old", tmp_path / "new")
    rename.rename_new(tmp_path / "old", tmp_path / "new")
    assert _inventory(tmp_path) == ["new"]


def _inventory(directory: Path) -> list[str]:
    """Everything below, but for what is still being written."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if ".partial-" not in str(path))
    return sorted(name for name in found if not any(other.startswith(f"{name}/") for other in _below(directory)))


def _below(directory: Path) -> list[str]:
    return [str(path.relative_to(directory)) for path in directory.rglob("*")]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
