"""Hub ids at the command line: inspected without their weights, downloaded with progress for whoever watches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoint.hub_server import Hub, serve
from tests.cli.conftest import Run
from tests.fixtures import STORIES

STORIES_BYTES = (STORIES / "model.safetensors").stat().st_size


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(shutil.copytree(STORIES, tmp_path / "repository")) as running:
        yield running


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment in which the hub's client talks to this hub, with an empty cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return lambda **more: {**kept, **settings, **more}


def test_inspecting_reads_headers_by_range(hub: Hub, process: Run, environment: Callable[..., dict[str, str]]) -> None:
    outcome = process("org/model", module="core.inspect", env=environment())
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("org/model\n")
    assert f"\n  revision        {hub.commit}\n" in outcome.out
    assert "\n  loaded by       plugins.mistral " in outcome.out
    weights = sum(request.sent for request in hub.requests if request.path.endswith(".safetensors"))
    assert 0 < weights < STORIES_BYTES / 4


@pytest.mark.parametrize("name", ["org/absent", "org/model@absent"])
def test_what_is_not_on_the_hub(process: Run, environment: Callable[..., dict[str, str]], name: str) -> None:
    outcome = process("inspect", name, env=environment())
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.messages == [message for message in outcome.messages if message.startswith("error: hub:org/")]
    assert len(outcome.messages) == 1


def test_a_download_shows_its_progress_to_people_alone(
    process: Run, watched: Run, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    command = ("generate", "Once", "--model", "org/model", "-n", "2")
    silent = process(*command, env=environment(HF_HOME=str(tmp_path / "other")))
    assert (silent.code, silent.err) == (0, "")
    outcome = watched(*command, **environment())
    assert (outcome.code, outcome.out) == (0, silent.out)
    assert "Fetching" in outcome.err


def test_a_repository_is_converted_and_its_card_says_which(
    hub: Hub, process: Run, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    (hub.directory / "README.md").write_text("---\nlicense: mit\nbase_model: other/parent\n---\nA story.\n")
    planned = process("convert", "org/model", target, "--dtype", "float16", "--dry-run", env=environment())
    assert (planned.code, planned.err) == (0, "")
    assert sum(one.sent for one in hub.requests if one.path.endswith(".safetensors")) < STORIES_BYTES / 4
    done = process("convert", "org/model", target, "--dtype", "float16", env=environment())
    assert (done.code, done.err) == (0, "")
    assert done.out == planned.out.replace("would be written", "written and verified")
    files = done.out.rpartition("other files")[2].strip().split(", ")
    assert sorted(path.name for path in target.iterdir()) == sorted([*files, "model.safetensors"])
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nbase_model: org/model\n")
    assert "`base_model: other/parent`" in next(line for line in card.splitlines() if line.startswith("| left out |"))
    assert card.endswith("\nA story.\n")
    (hub.directory / "notes.txt").write_text("public, like its name")
    done = process("convert", "org/model", target, "--force", env=environment())
    assert "`notes.txt`" in (target / "README.md").read_text()
    assert f"| revision | {hub.commit} |" in card
