"""Local directories: what may be asked of a checkpoint, and what the operating system may answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.checkpoint import open_checkpoint
from core.errors import CheckpointError, ConfigError

from .sparse import write_checkpoint

SMALL = {"a": ("F32", [2, 2]), "b": ("BF16", [3])}


def write(directory: Path, **texts: str | bytes) -> Path:
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return directory


def test_what_is_in_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL, config={"model_type": "mistral"})
    write(
        tmp_path,
        **{"additional_chat_templates/tool.jinja": "{{ x }}", "original/consolidated.00.pth": b"", "é.txt": "ü"},
    )
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.files == ("additional_chat_templates/tool.jinja", "config.json", "model.safetensors", "é.txt")
    assert checkpoint.has("config.json")
    assert not checkpoint.has("generation_config.json")
    assert checkpoint.read_json("config.json") == {"model_type": "mistral"}
    assert checkpoint.read_text("additional_chat_templates/tool.jinja") == "{{ x }}"
    assert checkpoint.read_text("é.txt") == "ü"
    assert (checkpoint.source, checkpoint.path, checkpoint.revision) == (str(tmp_path), tmp_path, None)
    assert checkpoint.where("config.json") == str(tmp_path / "config.json")
    assert checkpoint.fetch_weights() is checkpoint
    assert repr(checkpoint) == f"<Checkpoint {tmp_path}>"


def test_tensors_are_parsed_once_and_cannot_be_changed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, SMALL))
    tensors = checkpoint.tensors
    (tmp_path / "model.safetensors").unlink()
    assert checkpoint.tensors is tensors
    with pytest.raises(TypeError):
        tensors["c"] = tensors["a"]  # type: ignore[index]


def test_a_relative_path_outlives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "m", SMALL)
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("m")
    monkeypatch.chdir("/")
    assert len(checkpoint.tensors) == 2


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "m", SMALL)
    assert open_checkpoint("~/m").path == tmp_path / "m"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1,\n "b": }', "is not valid JSON at line 2, column 7: Expecting value"),
        ("", "is empty (expected a JSON object)"),
        (" \n", "is empty"),
        ("[1, 2]", "is not a JSON object (expected {...}, found a list of 2)"),
        ('"x"', "found 'x')"),
        ("null", "found null)"),
        (b'{"a": "\xe9"}', "is not UTF-8 text (found byte 0xe9 at 7)"),
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "is nested too deeply (expected at most 64 levels)"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "has a number that no reader accepts"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            "is a git-LFS pointer, not the file itself",
        ),
    ],
)
def test_bad_json_is_a_config_error(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(write(tmp_path, **{"config.json": text})).read_json("config.json")
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {problem}" if problem[0] == "i" else "")
    assert problem in str(caught.value)
    assert caught.value.where == str(tmp_path / "config.json")
    assert caught.value.__cause__ is None


def test_brackets_and_quotes_inside_strings_do_not_count_as_nesting(tmp_path: Path) -> None:
    text = '{"a": "' + "[{" * 1000 + '", "b\\"[": "\\\\", "c": [' + ",".join(['{"d": "]"}'] * 100) + "]}"
    value = open_checkpoint(write(tmp_path, **{"config.json": text})).read_json("config.json")
    assert value["a"] == "[{" * 1000
    assert value['b"['] == "\\"
    assert value["c"] == [{"d": "]"}] * 100


def test_sixty_four_levels_are_allowed(tmp_path: Path) -> None:
    write(tmp_path, **{"config.json": '{"a": ' + "[" * 63 + "]" * 63 + "}"})
    assert open_checkpoint(tmp_path).read_json("config.json").keys() == {"a"}


def test_python_spellings_of_json_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    write(tmp_path, **{"config.json": '{"limit": Infinity, "a": 1, "a": 2}'})
    assert open_checkpoint(tmp_path).read_json("config.json") == {"limit": float("inf"), "a": 2}


def test_files_of_any_size_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="is too large"):
        open_checkpoint(tmp_path).read_json("config.json")
    with pytest.raises(CheckpointError, match="is too large"):
        open_checkpoint(tmp_path).read_text("config.json")


def test_text_that_is_none(tmp_path: Path) -> None:
    write(tmp_path, **{"a.jinja": b"\xff", "b.jinja": "version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(CheckpointError, match="is not UTF-8 text"):
        open_checkpoint(tmp_path).read_text("a.jinja")
    with pytest.raises(CheckpointError, match="is a git-LFS pointer"):
        open_checkpoint(tmp_path).read_text("b.jinja")


def test_a_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json \(found no files\)"):
        open_checkpoint(tmp_path).read_json("config.json")
    write(tmp_path / "below", **{"config.json": "{}"})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path).read_json("config.json")
    assert f"did you mean {tmp_path / 'below'}?" in str(caught.value)


def test_a_file_outside_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, secret="x")
    write(tmp_path / "m", **{"config.json": "{}"})
    with pytest.raises(CheckpointError, match=r"has no \.\./secret"):
        open_checkpoint(tmp_path / "m").read_text("../secret")


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, SMALL, config={}))
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: does not exist"):
        checkpoint.read_json("config.json")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not exist"):
        checkpoint.tensors  # noqa: B018


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    with pytest.raises(CheckpointError, match="is a link to a file that does not exist") as caught:
        open_checkpoint(tmp_path).tensors  # noqa: B018
    assert caught.value.found == str(tmp_path / "blobs" / "0123")


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "notes").symlink_to("notes")  # concerns nobody
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: "):
        open_checkpoint(tmp_path).tensors  # noqa: B018


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "config.json").mkdir()
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: is not a file \(expected a regular file, found a dir"
    ):
        checkpoint.tensors  # noqa: B018
    with pytest.raises(CheckpointError, match=r"config\.json: is not a file"):
        checkpoint.read_json("config.json")


def test_a_pipe_or_socket_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("config.json")
        checkpoint = open_checkpoint(tmp_path)
        with pytest.raises(CheckpointError, match="found a device, pipe or socket"):
            checkpoint.tensors  # noqa: B018
        with pytest.raises(CheckpointError, match="found a device, pipe or socket"):
            checkpoint.read_json("config.json")


UNREADABLE = """
import os, sys
from core.checkpoint import open_checkpoint
from core.errors import CheckpointError
if os.getuid() == 0:  # only now: the interpreter itself may lie where nobody else may read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for source in sys.argv[1:]:
    try:
        checkpoint = open_checkpoint(source)
        checkpoint.tensors
    except CheckpointError as error:
        print(type(error).__name__, error, sep=" ")
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_may_not_be_read(public: Path) -> None:
    """In a child without privileges: root may read everything."""
    directory, file, below = (write_checkpoint(public / name, SMALL) for name in ("directory", "file", "closed/below"))
    directory.chmod(0)
    (file / "model.safetensors").chmod(0)
    (public / "closed").chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", UNREADABLE, str(directory), str(file), str(below)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=True,
        )
    finally:
        directory.chmod(0o755)
        (public / "closed").chmod(0o755)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split(" ", 1)[1].split(": ")[:2] for line in lines] == [
        [str(directory), "is not readable by this user"],
        [str(file / "model.safetensors"), "is not readable by this user"],
        [str(below), "is not accessible to this user"],
    ]
