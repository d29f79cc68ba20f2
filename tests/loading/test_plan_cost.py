"""What a plan costs: headers are read, a skeleton is built, and nothing more, however large the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import core
from tests.checkpoint.sparse import Tensors, mixtral_tensors, write_mixtral_8x7b, write_shard
from tests.fixtures import real_config, real_index

ROOT = Path(__file__).parents[2]

CHILD = """
import json, sys, time
from pathlib import Path
import core
import mlx.core as mx

core.plan("demo:mixtral")  # what any plan imports: its code is read, and compiled where it is new

def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024

def read_so_far():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

resident, read, started = status("VmHWM"), read_so_far(), time.perf_counter()
plan = core.plan(sys.argv[1])
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "read": read_so_far() - read,
    "resident": status("VmHWM") - resident,
    "array_bytes": mx.get_peak_memory(),
    "ok": plan.ok,
    "bytes": plan.bytes,
    "parameters": plan.parameters,
    "tensors": sum(len(entry.tensors) for entry in plan.entries),
}))
"""


def measured(path: Path) -> Mapping[str, Any]:
    """What planning ``path`` costs a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def header_size(path: Path) -> int:
    total = 0
    for shard in path.glob("*.safetensors"):
        with shard.open("rb") as file:
            total += 8 + int.from_bytes(file.read(8), "little")
    return total


def write_wizardlm(directory: Path) -> Path:
    """WizardLM-2-8x22B: the published config and index, its 59 shards as headers over holes."""
    raw, index = real_config("WizardLM-2-8x22B"), real_index("WizardLM-2-8x22B")
    shapes = mixtral_tensors(raw)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for shard in sorted(set(index.values())):
        tensors: Tensors = {name: shapes[name] for name, home in index.items() if home == shard}
        write_shard(directory / shard, tensors)
    return directory


MODELS = {
    "Mixtral-8x7B": (write_mixtral_8x7b, 995, 46_702_792_704),
    "WizardLM-2-8x22B": (write_wizardlm, 1739, 140_620_634_112),
}


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel's count of bytes read is Linux's")
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_reads_headers_and_nothing_else(name: str, tmp_path: Path) -> None:
    """Bytes that system calls returned, whoever made them; the weights are hundreds of gigabytes of holes.

    Measured: 0.15 s and 4.4 MB (8x7B), 0.3 s and 7.4 MB (8x22B); the bounds leave room for slow machines.
    """
    write, tensors, parameters = MODELS[name]
    path = write(tmp_path / "model")
    figures = measured(path)
    assert figures["ok"]
    assert figures["tensors"] == tensors
    assert figures["parameters"] == parameters
    assert figures["bytes"] >= 2 * parameters
    own = sum((path / file).stat().st_size for file in ("config.json", "model.safetensors.index.json"))
    # Beyond these: metadata of the installed distributions, and modules that are imported on the way.
    assert figures["read"] < header_size(path) + own + 500_000
    assert figures["resident"] < 200_000_000
    assert figures["array_bytes"] < 1_000_000
    assert figures["seconds"] < 3


def test_a_plan_does_not_need_the_weights_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever MLX has to load a file with is out of order, and the plan is the same."""
    path = write_mixtral_8x7b(tmp_path / "model")
    expected = core.plan(path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a plan asked for arrays of a file")

    monkeypatch.setattr("mlx.core.load", refuse)
    monkeypatch.setattr("mlx.core.eval", refuse)
    assert core.plan(path) == expected
    with pytest.raises(AssertionError, match="asked for arrays"):
        core.load(path, tokenizer=False, check_memory=False)
