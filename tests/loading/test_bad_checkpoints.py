"""Bad checkpoints fail well: one error of the right class, which names what is wrong and the way out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import core
from core.errors import CheckpointError, CoreError, QuantizationError, WeightsError
from core.loading import prepare
from core.weights.load import execute
from tests.fixtures import STORIES, oracle
from tests.fixtures.variants import REMOVED, Tensor, variant
from tests.loading.damage import DAMAGES, SHARD, V_PROJ, spoilt, tensors, with_tensor

MAX_LINES = 6
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_clear_error(name: str, tmp_path: Path) -> None:
    damage = DAMAGES[name]
    path = damage.build(tmp_path / "model")
    with pytest.raises(CoreError) as caught:
        core.load(path, tokenizer=damage.tokenizer)
    assert type(caught.value) is damage.error
    text = str(caught.value)
    for part in (*damage.says, damage.hint):
        assert part in text
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.replace(str(tmp_path), "")) < 1000
    assert str(tmp_path) in text  # whose file it is


@pytest.mark.parametrize("name", [name for name, damage in DAMAGES.items() if not damage.tokenizer])
def test_the_plan_says_what_headers_tell(name: str, tmp_path: Path) -> None:
    """``core.plan`` refuses or reports exactly what a load would refuse before its first weight byte."""
    damage = DAMAGES[name]
    path = damage.build(tmp_path / "model")
    if not damage.planned:
        assert core.plan(path).ok
    elif damage.error is WeightsError:
        assert not core.plan(path).ok
    else:
        with pytest.raises(damage.error):
            core.plan(path)


def test_nothing_of_the_weights_is_read_before_the_tokenizer_is_found(tmp_path: Path) -> None:
    """The damage has NaN in its weights as well: a load that looked at them would say so first."""
    path = DAMAGES["no tokenizer"].build(tmp_path / "model")
    with pytest.raises(WeightsError, match="NaN"):
        core.load(path, tokenizer=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_check_of_values_can_be_turned_off(value: float, tmp_path: Path) -> None:
    path = tensors(with_tensor(V_PROJ, spoilt(value)))(tmp_path / "model")
    lm = core.load(path, tokenizer=False, check_finite=False)
    assert not mx.isfinite(lm.model(mx.array([[1, 2, 3]]))).all().item()
    with pytest.raises(WeightsError, match=V_PROJ):
        core.load(path, tokenizer=False)


def test_large_finite_weights_pass_the_check_of_values(tmp_path: Path) -> None:
    """A sum overflows long before its terms do."""

    def enlarge(tensor: Tensor) -> Tensor:
        return Tensor.of(np.full(tensor.shape, 3e38, np.float32), "F32")

    path = tensors(with_tensor("model.norm.weight", enlarge))(tmp_path / "model")
    assert core.load(path, tokenizer=False).report.plan.ok


def test_numbers_too_large_for_the_dtype_asked_for_are_said_so(tmp_path: Path) -> None:
    """Not the file is wrong: 1e5 is a number in float32 and infinity in float16."""
    path = tensors(with_tensor(V_PROJ, spoilt(1e5)))(tmp_path / "model")
    assert core.load(path, tokenizer=False).report.plan.ok
    with pytest.raises(WeightsError, match=r"v_proj.*too large for float16") as caught:
        core.load(path, tokenizer=False, dtype=mx.float16)
    assert "dtype=mx.float32" in str(caught.value)


def test_a_tied_head_that_is_stored_too_is_left_unread_and_listed(tmp_path: Path) -> None:
    def duplicate(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return found | {"lm_head.weight": found["model.embed_tokens.weight"]}

    path = variant(oracle("mistral_tied"), tmp_path / "model", tensors=duplicate)
    lm, plain = core.load(path, tokenizer=False), core.load(oracle("mistral_tied"), tokenizer=False)
    assert dict(lm.report.plan.ignored) == {"lm_head.weight": "tied to model.embed_tokens"}
    assert "tensors left unread: 1" in str(lm.report)
    assert not plain.report.plan.ignored
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(lm.model(tokens), plain.model(tokens)).item()


def test_an_untied_head_is_never_dropped(tmp_path: Path) -> None:
    """Mistral and Mixtral are untied unless the config says otherwise: an absent key must not lose ``lm_head``."""
    path = variant(oracle("mistral_swa8"), tmp_path / "model", config={"tie_word_embeddings": REMOVED})
    assert "lm_head.weight" in {entry.parameter for entry in core.plan(path).entries}


def test_a_group_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    """stories260K has an intermediate size of 172; a file that claims to be quantized over it cannot be."""

    def claim(found: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "model.layers.0.mlp.down_proj"
        packed = Tensor("U32", (64, 21), bytes(4 * 64 * 21))
        scales = Tensor("F32", (64, 5), bytes(4 * 64 * 5))
        return found | {f"{name}.weight": packed, f"{name}.scales": scales, f"{name}.biases": scales}

    path = variant(STORIES, tmp_path / "model", config={"quantization": {"bits": 4, "group_size": 32}}, tensors=claim)
    with pytest.raises(QuantizationError) as caught:
        core.load(path)
    for part in ("layers.0.mlp.down_proj", "4-bit, groups of 32", "172"):
        assert part in str(caught.value)


def test_a_shard_that_shrinks_after_the_plan_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    path = variant(oracle("mistral_swa8"), tmp_path / "model")
    prepared = prepare(path)
    os.truncate(path / SHARD, (path / SHARD).stat().st_size - 4096)
    with pytest.raises(CheckpointError, match=SHARD):
        execute(prepared.plan, prepared.model, prepared.checkpoint)


CHILD = """
import os, sys
import core, core.loading, core.text, plugins.mistral  # while this user may still read them
from core.errors import CoreError
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        core.load(path)
    except CoreError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A temporary directory that other users may enter; those above ``tmp_path`` they may not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_may_not_be_read_is_said(public_directory: Path) -> None:
    """A directory without permission, and a file; the child drops root's right to read everything."""
    closed = variant(oracle("mistral_swa8"), public_directory / "closed")
    shard = variant(oracle("mistral_swa8"), public_directory / "shard") / SHARD
    shard.chmod(0)
    closed.chmod(0)
    command = [sys.executable, "-c", CHILD, str(closed), str(shard.parent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    closed.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, path in zip(lines, (closed, shard), strict=True):
        assert line.startswith(f"CheckpointError {path}")
        assert "is not readable by this user" in line
        assert "check its permissions" in line
