"""Nothing from outside a checkpoint comes into a directory that somebody may publish."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import core
from core.errors import SaveError
from core.saving import plan_conversion
from tests.fixtures import oracle
from tests.saving.compare import assert_same_tensors

SOURCE = oracle("mistral_swa8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.jinja").write_text("key")
    return shutil.copytree(SOURCE, tmp_path / "source")


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "additional_chat_templates", "NOTICE"])
def test_a_link_out_of_it_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    (source / name).unlink(missing_ok=True)
    inside = source / "notes"  # a link to a link
    inside.symlink_to(tmp_path / "secrets" / "key.jinja")
    targets = {"additional_chat_templates": tmp_path / "secrets", "NOTICE": Path("notes")}
    (source / name).symlink_to(targets.get(name, Path("/proc/self/environ")))
    for convert in (plan_conversion, core.convert):
        with pytest.raises(SaveError, match="is a link out of the checkpoint, and is not copied") as caught:
            convert(source, tmp_path / "out")
        assert caught.value.where is not None
        assert caught.value.where.startswith(str(source / name))
    with pytest.raises(SaveError, match="is a link out of the checkpoint, and is not copied"):
        core.save(core.load(source, tokenizer=False), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secrets", "source"]


def test_a_link_within_it_is_copied_as_a_file(source: Path, tmp_path: Path) -> None:
    (source / "terms.txt").write_text("terms")
    (source / "LICENSE").symlink_to("terms.txt")
    (tmp_path / "link").symlink_to(source)
    core.convert(tmp_path / "link", tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()


def test_links_into_the_blobs_of_the_same_repository_are_copied(source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / "c0ffee"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (source / "LICENSE").write_text("terms")
    for file in source.iterdir():
        file.rename(repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    core.convert(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    (repository / "blobs" / "LICENSE").unlink()
    (repository / "blobs" / "LICENSE").symlink_to(tmp_path / "secrets" / "key.jinja")
    with pytest.raises(SaveError, match="is a link out of the checkpoint, and is not copied"):
        core.convert(snapshot, tmp_path / "other")


def test_weights_and_config_may_be_links_because_they_are_read_and_not_copied(source: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (source / name).rename(tmp_path / "secrets" / name)
        (source / name).symlink_to(tmp_path / "secrets" / name)
    core.convert(source, tmp_path / "out")
    assert_same_tensors(source, tmp_path / "out")


def test_a_companion_that_is_no_file_is_an_error(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(SaveError, match="is not a file, or no longer exists") as caught:
        core.convert(source, tmp_path / "out")
    assert caught.value.where == str(source / "LICENSE")
