"""``examples/corelm-olmo2`` as its users have it: installed from its wheel, beside core from its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ci import only_in_ci
from tests.thirdparty.environments import ROOT, Environment, build_wheel

pytestmark = only_in_ci

EXAMPLE = ROOT / "examples" / "corelm-olmo2"
REFERENCE = EXAMPLE / "tests" / "reference"
USE = """
import json, sys
import core
reference, copy = sys.argv[1:]
lm = core.load(reference, tokenizer=False)
prompt = [3, 1, 4, 1, 5]
greedy = list(core.generate_tokens(lm.model, prompt, max_tokens=8, temperature=0))
batch = core.Batch(lm)
requests = [batch.submit(ids, max_tokens=8, temperature=0) for ids in ([7] * 30, prompt, [9])]
list(batch)
core.convert(reference, copy)
again = core.load(copy, tokenizer=False)
smaller = core.load(reference, tokenizer=False, quantize=4)
print(json.dumps({
    "plugin": lm.report.plan.plugin,
    "unread": lm.report.plan.unread_keys,
    "greedy": greedy,
    "batch": requests[1].result.token_ids,
    "again": list(core.generate_tokens(again.model, prompt, max_tokens=8, temperature=0)),
    "quantized": len(list(core.generate_tokens(smaller.model, prompt, max_tokens=8, temperature=0))),
    "bytes": [lm.report.plan.bytes, smaller.report.plan.bytes],
    "modules": sorted(name for name in sys.modules if name.startswith(("plugins", "corelm"))),
}))
"""


@pytest.fixture(scope="module")
def installed(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment.install(build_wheel(EXAMPLE, tmp_path_factory.mktemp("example-wheel")))
    return environment


def test_it_is_listed(installed: Environment) -> None:
    claim = installed.plugins()["olmo2"]
    assert (claim["distribution"], claim["status"], claim["error"]) == ("corelm-olmo2", "active", None)
    assert Path(claim["file"]).is_relative_to(installed.directory)


def test_it_loads_generates_saves_and_quantizes(installed: Environment, tmp_path: Path) -> None:
    facts = json.loads(installed.python("-c", USE, REFERENCE, tmp_path / "copy").stdout)
    assert facts["plugin"] == "corelm_olmo2 (corelm-olmo2 0.1.0)"
    assert facts["unread"] == []
    assert len(facts["greedy"]) == facts["quantized"] == 8
    assert facts["greedy"] == facts["again"] == facts["batch"]
    assert facts["bytes"][1] < facts["bytes"][0] / 2
    modules = {"", ".attention", ".block", ".config", ".weights"}
    assert set(facts["modules"]) == {f"corelm_olmo2{name}" for name in modules}  # and no built-in plugin
    report = installed.python("-m", "core.inspect", tmp_path / "copy").stdout
    assert "loaded by       corelm_olmo2 (corelm-olmo2 0.1.0, installed)" in report


def test_its_own_tests_pass(installed: Environment, tmp_path: Path) -> None:
    assert installed.run_tests(EXAMPLE, tmp_path) >= 25
