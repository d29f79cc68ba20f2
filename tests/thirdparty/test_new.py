"""``corelm new``, followed to the letter: written by core's wheel, built, installed, listed and tested as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ci import only_in_ci
from tests.thirdparty.environments import Environment, build_wheel

pytestmark = only_in_ci


@pytest.mark.parametrize(
    ("arguments", "model_type", "name"),
    [(("birch",), "birch", "corelm-birch"), (("big_Oak.2", "--like", "mixtral"), "big_Oak.2", "corelm-big-oak-2")],
    ids=["mistral", "mixtral"],
)
def test_a_new_package_installs_is_listed_and_passes_its_tests(
    environment: Environment, tmp_path: Path, arguments: tuple[str, ...], model_type: str, name: str
) -> None:
    told = environment.python("-m", "core", "new", *arguments, "--dir", tmp_path)
    project = tmp_path / name
    assert f"cd {project}\n" in told.stdout
    assert told.stderr == ""
    environment.install(build_wheel(project, tmp_path / "wheel"))
    claim = environment.plugins()[model_type]
    assert (claim["distribution"], claim["version"], claim["status"]) == (name, "0.1.0", "active")
    assert claim["error"] is None
    assert Path(claim["file"]).is_relative_to(environment.directory)
    assert environment.run_tests(project, tmp_path / "elsewhere") >= 25
