"""``corelm convert``: sizes and settings as people write them, exit codes, and no traceback."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import core
from core.cli.convert import shard_size
from tests.cli.conftest import Run
from tests.fixtures import oracle
from tests.fixtures.foreign import gptq, write_foreign
from tests.saving.compare import assert_same_tensors

MIXTRAL = oracle("mixtral_swa8")


def test_it_converts_and_says_what_it_wrote(corelm: Run, tmp_path: Path) -> None:
    done = corelm("convert", MIXTRAL, tmp_path / "out", "--layout", "mlx", "--dtype", "bfloat16")
    assert (done.code, done.err) == (0, "")
    assert "written and verified" in done.out
    assert "hf → mlx" in done.out
    assert "  not copied    meta.json, reference.npz\n" in done.out
    assert core.plan(tmp_path / "out").layout == "mlx"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_dry_run_says_the_same_and_writes_nothing(corelm: Run, tmp_path: Path) -> None:
    options = ("--max-shard-size", "0.5MB")
    planned = corelm("convert", MIXTRAL, tmp_path / "out", *options, "--dry-run")
    assert planned.code == 0
    assert not list(tmp_path.iterdir())
    done = corelm("convert", MIXTRAL, tmp_path / "out", *options)
    assert planned.out.replace("would be written", "written and verified") == done.out
    assert "model-00001-of-00004.safetensors" in done.out


def test_refusals_are_one_error_each_and_force_is_the_way_out(corelm: Run, tmp_path: Path) -> None:
    assert corelm("convert", MIXTRAL, tmp_path / "out").code == 0
    refused = corelm("convert", MIXTRAL, tmp_path / "out")
    assert refused.code == 1
    assert refused.messages == [f"error: {tmp_path / 'out'}: exists already"]
    assert corelm("convert", MIXTRAL, tmp_path / "out", "--force").code == 0
    assert_same_tensors(MIXTRAL, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("{source}", "{out}/no/such"), 1, "its parent directory does not exist"),
        (("{source}", "{source}"), 2, "the destination is the source"),
        (("{source}", "{source}/x"), 2, "inside of it"),
        (("{out}/none", "{out}/x"), 1, "there is no such directory"),
        (("{source}", "{out}/x", "--layout", "gguf"), 2, "invalid choice"),
        (("{source}", "{out}/x", "--max-shard-size", "big"), 2, "no size: 'big'"),
        (("{source}", "{out}/x", "--max-shard-size", "0GB"), 2, "at least one byte"),
        (("{source}", "{out}/x", "--group-size", "64"), 2, "needs --bits"),
        (("{source}", "{out}/x", "--bits", "4", "--dequantize"), 2, "contradicts"),
        (("{source}", "{out}/x", "--bits", "4", "--recipe", "mixed"), 2, "contradicts"),
        (("{source}",), 2, "DST"),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, said: str, corelm: Run, tmp_path: Path) -> None:
    places = {"source": str(MIXTRAL), "out": str(tmp_path)}
    done = corelm("convert", *(argument.format(**places) for argument in arguments))
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_sizes_are_read_as_they_are_written() -> None:
    written = {"5GB": 5_000_000_000, "5 GiB": 5 * 2**30, "1.5m": 1_500_000, "700": 700, "2kib": 2048, "1TB": 10**12}
    assert {text: shard_size(text) for text in written} == written


def test_approximating_says_by_how_much(corelm: Run, tmp_path: Path) -> None:
    block: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    made = write_foreign(oracle("mistral_swa8"), tmp_path, partial(gptq, bits=4), block)
    done = corelm("convert", made.path, tmp_path / "out", "--approximate")
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if "weight error" in line)
    found = core.load(made.path, tokenizer=False, approximate=True).report.weight_error
    assert found is not None
    assert f"{found:.3g} at most" in line
    exact = corelm("convert", made.path, tmp_path / "exact")
    assert "weight error" not in exact.out
