"""A plugin that was built for an earlier core still works: a wheel that is never rebuilt with the sources around it.

``tests/data/frozen/README.md`` says when it may be.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.testing import ArchitectureTests
from tests.fixtures import oracle, reference
from tests.registry.conftest import ROOT
from tests.registry.wheels import unpack

FROZEN = ROOT / "tests" / "data" / "frozen"
ORACLE = oracle("mixtral_swa8")


@pytest.fixture(autouse=True, scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    site = tmp_path_factory.mktemp("frozen-site")
    (wheel,) = FROZEN.glob("*.whl")
    unpack(wheel, site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "corelm_frozen"]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Mixtral of which transformers has computed the logits, under the type that the wheel claims."""
    shutil.copytree(ORACLE, tmp_path / "frozen")
    config = json.loads((ORACLE / "config.json").read_text()) | {"model_type": "frozen"}
    (tmp_path / "frozen" / "config.json").write_text(json.dumps(config))
    return tmp_path / "frozen"


def test_it_loads_computes_and_generates(checkpoint: Path) -> None:
    lm = core.load(checkpoint, tokenizer=False)
    claim = lm.report.claim
    assert (claim.distribution, claim.version, claim.tier) == ("corelm-frozen", "0.1.0", "installed")
    arrays = reference(ORACLE)
    logits = lm.model(mx.array(arrays["input_ids"])[None])[0]
    np.testing.assert_allclose(np.array(logits), arrays["logits"], atol=1e-4, rtol=1e-4)
    prompt, expected = arrays["input_ids"].tolist(), arrays["continuation"].tolist()
    generated = list(core.generate_tokens(lm.model, prompt, max_tokens=len(expected), temperature=0))
    assert generated == expected
    assert sys.modules["corelm_frozen"].loaded[-1] == (lm.model, lm.report)


def test_it_quantizes_all_but_the_router(checkpoint: Path) -> None:
    lm = core.load(checkpoint, tokenizer=False, quantize=4)
    kinds = {path.rpartition(".")[2]: type(module).__name__ for path, module in lm.model.named_modules()}
    assert kinds["gate"] == "Router"
    assert kinds["o_proj"] == "QuantizedLinear"


class TestFrozen(ArchitectureTests):
    plugin = "corelm-frozen"
    config = json.loads((ORACLE / "config.json").read_text()) | {"model_type": "frozen"}
    layouts = ("hf", "hf-fused", "mlx", "mistral")


def test_the_source_beside_the_wheel_is_its_own() -> None:
    (wheel,) = FROZEN.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    source = FROZEN / "corelm-frozen"
    assert held == {str(file.relative_to(source)): file.read_bytes() for file in source.rglob("*.py")}
