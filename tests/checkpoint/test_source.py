"""What a user's word for a checkpoint means, and what is said when it means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.checkpoint import open_checkpoint
from core.checkpoint import source as source_module
from core.checkpoint.source import HubId, resolve
from core.errors import CheckpointError, UsageError

from .sparse import write_checkpoint


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("source", "repo", "revision"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", None),
        ("mlx-community/Mistral-7B-Instruct-v0.3-4bit", "mlx-community/Mistral-7B-Instruct-v0.3-4bit", None),
        ("a/b", "a/b", None),
        ("a_b/c.d-e_f", "a_b/c.d-e_f", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
    ],
)
def test_hub_ids(source: str, repo: str, revision: str | None) -> None:
    assert resolve(source) == HubId(repo, revision)


def test_revisions() -> None:
    assert resolve("org/name", "v1") == HubId("org/name", "v1")
    assert resolve("org/name@v1", "v1") == HubId("org/name", "v1")
    with pytest.raises(UsageError, match="two revisions were given"):
        resolve("org/name@v1", "v2")


def test_whatever_exists_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    assert resolve("org/name@v1") == Path("org/name@v1")
    assert resolve("org") == Path("org")
    assert resolve(tmp_path / "org") == tmp_path / "org"
    with pytest.raises(UsageError, match="a revision was given for a directory"):
        open_checkpoint("org", revision="main")


@pytest.mark.parametrize(
    "source",
    [
        "mistral", "./org/name", "../name", "/org/name", "~/name", "a/b/c", "org/name/", "a\\b", "C:\\models\\x",
        "org/with space", "org/na--me", "org/na..me", "org/-name", "org/name.", "org/model.safetensors", "org/x.gguf",
        "org//name", "org/name@", "@v1", "", "main@org/name",
        "a" * 5000, "org/" + "a" * 5000 + "/x", "nul\0byte", "ö/ä", "demo",
    ],
)  # fmt: skip
def test_paths_that_do_not_exist(source: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source)
    text = str(caught.value)
    assert "there is no such directory" in text or "names no checkpoint" in text
    assert type(caught.value) is CheckpointError
    assert "repo id must" not in text.lower()
    assert caught.value.hint is not None


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="there is no such directory"):
        open_checkpoint(Path("org/name"))


def test_the_part_of_a_path_that_exists_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'models'} exists, the rest does not"):
        open_checkpoint(tmp_path / "models" / "mistral" / "7b")


def test_a_file_is_answered_with_its_directory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"a": ("F32", [1])})
    for source in (tmp_path / "m" / "model.safetensors", "m/model.safetensors", "./m/model.safetensors"):
        with pytest.raises(CheckpointError, match="is a file, and a checkpoint is a directory") as caught:
            open_checkpoint(source)
        assert str(caught.value).endswith("/m") or str(caught.value).endswith(" m")


@pytest.mark.parametrize("source", [b"org/name", None, 5, ["org/name"]])
def test_what_is_no_name_is_refused(source: object) -> None:
    with pytest.raises(UsageError, match=rf"named by a str or a path \(found {type(source).__name__}\)"):
        open_checkpoint(source)  # type: ignore[arg-type]


def test_a_home_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="~nobody_at_all/m: there is no such home directory"):
        open_checkpoint("~nobody_at_all/m")


def test_a_text_that_was_given_for_a_path_is_not_repeated() -> None:
    with pytest.raises(CheckpointError, match="there is no such directory") as caught:
        open_checkpoint("a text " * 100_000)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("https://huggingface.co/mistralai/Mixtral-8x7B-v0.1", "id: mistralai/Mixtral-8x7B-v0.1"),
        ("https://huggingface.co/org/name/", "id: org/name"),
        ("https://huggingface.co/org/name/tree/v2?x=1", "id: org/name@v2"),
        ("https://huggingface.co/org/name/resolve/main/model.safetensors", "id: org/name@main"),
        ("https://example.com", "org/name, or download it"),
    ],
)
def test_urls_are_answered_with_the_id(url: str, way_out: str) -> None:
    with pytest.raises(CheckpointError, match="is a URL") as caught:
        open_checkpoint(url)
    assert str(caught.value).count(way_out) == 1


def test_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demos = tmp_path / "demos"
    monkeypatch.setattr(source_module, "DEMOS", demos)
    with pytest.raises(CheckpointError, match="this installation has no demo models"):
        open_checkpoint("demo:mixtral")
    for name in ("mistral", "mixtral", "__pycache__"):
        write_checkpoint(demos / name, {"a": ("F32", [1])})
    assert open_checkpoint("demo:mixtral").path == demos / "mixtral"
    assert open_checkpoint("demo:mixtral").source == "demo:mixtral"
    for name in ("llama", "", "../demos/mistral", "__pycache__", "mistral/"):
        with pytest.raises(
            CheckpointError, match="there is no such demo model\n  there are: demo:mistral, demo:mixtral"
        ):
            open_checkpoint(f"demo:{name}")
    with pytest.raises(UsageError, match="a revision was given for a directory"):
        open_checkpoint("demo:mixtral", revision="main")
