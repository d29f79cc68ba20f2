"""``core.bench``: what it runs, with whom, and what it says of it. Nothing here depends on how fast anything is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import core
from core.benchmark import Shape, bandwidth, decode_chart, read_shape
from core.benchmark.bandwidth import memory_bandwidth
from core.benchmark.peer_kinds import PEERS
from core.benchmark.random_model import random_model
from core.benchmark.result import Spread
from core.benchmark.settings import Settings, prompt
from core.errors import BenchmarkError, ConfigError, UsageError
from core.kernels.device import cpu_sources
from tests.benchmark.conftest import TINY, TINY_EXPERTS
from tests.fixtures import STORIES

SHORT = {"prompt_tokens": [5, 20], "generate": 4, "iterations": 3}


def test_a_shape_without_weights() -> None:
    calls: list[tuple[int, int]] = []
    found = core.bench(Shape("tiny", TINY, bits=4), **SHORT, progress=lambda done, total: calls.append((done, total)))
    assert (found.schema, found.loading, found.peer, found.notes) == (1, None, None, ())
    assert (found.subject.name, found.subject.random, found.subject.layers) == ("tiny", True, 2)
    assert found.subject.quantization == "4-bit, groups of 64"
    assert [length.prompt_tokens for length in found.lengths] == [5, 20]
    assert calls == [(0, 6), (3, 6), (6, 6)]
    for length in found.lengths:
        assert length.context == length.prompt_tokens + 2
        assert len(length.speed.decode.values) == len(length.speed.prefill.values) == 3
        assert length.speed.decode.min <= length.speed.decode.median <= length.speed.decode.max
        assert length.speed.peak_memory > 0
        assert length.decode_limit == found.machine.bandwidth.median / length.step_bytes
        assert length.fraction == length.speed.decode.median / length.decode_limit
    more = found.lengths[1].step_bytes - found.lengths[0].step_bytes
    assert more == 15 * 2 * 64 * (4 if found.subject.compute_dtype == "float32" else 2)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["lengths"][0]["ratio"] is None


def test_a_checkpoint() -> None:
    found = core.bench(STORIES, **SHORT, dtype=mx.float32)
    assert found.loading is not None
    assert len(found.loading.seconds.values) == 3
    assert (found.subject.random, found.subject.model_type, found.subject.compute_dtype) == (
        False,
        "mistral",
        "float32",
    )
    plan = core.plan(STORIES, dtype=mx.float32)
    assert (found.subject.parameters, found.subject.weight_bytes) == (plan.parameters, plan.bytes)


@pytest.mark.usefixtures("peer")
def test_a_peer_takes_turns() -> None:
    found = core.bench(STORIES, **SHORT, against="mlx-lm")
    assert found.peer is not None
    assert (found.peer.name, found.peer.version) == ("mlx-lm", "9.9")
    assert found.peer.loading is not None
    assert len(found.peer.loading.seconds.values) == 3
    for length in found.lengths:
        assert length.peer is not None
        assert length.ratio is not None
        pairs = zip(length.speed.decode.values, length.peer.decode.values, strict=True)
        assert length.ratio.decode.values == tuple(mine / theirs for mine, theirs in pairs)
    assert "mlx_lm" not in sys.modules
    assert "mlx-lm" in decode_chart(found)


@pytest.mark.usefixtures("peer")
def test_a_peer_with_random_weights() -> None:
    found = core.bench(Shape("tiny", TINY, bits=4), **SHORT, against="mlx-lm")
    assert found.peer is not None
    assert (found.peer.loading, found.peer.load_ratio) == (None, None)


@pytest.mark.usefixtures("peer")
def test_a_peer_that_fails() -> None:
    with pytest.raises(BenchmarkError, match=r"mlx-lm failed to make \(found ModuleNotFoundError: No module named"):
        core.bench(Shape("tiny", TINY_EXPERTS), **SHORT, against="mlx-lm")
    with pytest.raises(BenchmarkError, match=r"mlx-lm died while it was asked to run \(found .*the end is near\)"):
        core.bench(Shape("tiny", TINY), prompt_tokens=[13], generate=2, iterations=1, against="mlx-lm")


def test_a_peer_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "mlx-lm", dataclasses.replace(PEERS["mlx-lm"], modules=("no_such_module",)))
    with pytest.raises(BenchmarkError, match="mlx-lm is not installed") as raised:
        core.bench("/nowhere", against="mlx-lm")
    assert "pip install mlx-lm" in str(raised.value)
    with pytest.raises(UsageError, match="is not a known peer"):
        core.bench("/nowhere", against="ollama")


@pytest.mark.usefixtures("peer")
def test_a_peer_has_the_same_weights() -> None:
    with pytest.raises(UsageError, match="quantize would change the weights on our side only"):
        core.bench(STORIES, against="mlx-lm", quantize=4)


@pytest.mark.parametrize(
    "settings", [{"generate": 1}, {"iterations": 0}, {"prompt_tokens": [0]}, {"prompt_tokens": []}]
)
def test_what_makes_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        core.bench("/nowhere", **settings)


def test_lengths_that_the_model_was_not_made_for() -> None:
    chosen, usual = Settings.checked([8, 4096], 128, 1), Settings.checked(None, 128, 1)
    assert chosen.fitting(None) == ((8, 4096), ())
    assert chosen.fitting(4224) == ((8, 4096), ())
    assert chosen.fitting(4223) == ((8, 4096), ("longer than the 4,223 tokens that the model was made for: 4,096",))
    assert usual.fitting(2048) == ((32, 512), ("left out, as the model was made for 2,048 tokens: 2,048, 8,192",))
    assert usual.fitting(100)[0] == (1,)


def test_prompts_are_ids_of_the_vocabulary() -> None:
    ids = prompt(1000, 100)
    assert len(ids) == 1000
    assert set(ids) <= set(range(100))
    assert len(set(ids)) > 50


def test_random_weights_are_not_zeros_and_leave_the_random_state_alone() -> None:
    before = mx.random.state[0].tolist()
    for shape in (Shape("tiny", TINY_EXPERTS, bits=4), Shape("tiny", TINY)):
        built, dtype = random_model(shape)
        for path, array in tree_flatten(built.model.parameters()):
            assert (array != 0).any().item(), path
            kept = mx.bfloat16 if cpu_sources() and array.ndim > 1 else dtype
            assert array.dtype in (kept, mx.uint32), path
    assert "scales" not in built.model.layers[0].self_attn.o_proj
    assert mx.random.state[0].tolist() == before
    experts = random_model(Shape("tiny", TINY_EXPERTS, bits=4))[0].model.layers[0].block_sparse_moe
    assert "scales" not in experts.gate  # the plugin's word
    assert "scales" in experts.experts.down_proj


def test_shapes_of_files(config: Path, tmp_path: Path) -> None:
    shape = read_shape(str(config), bits=8, layers=1)
    assert (shape.config["num_hidden_layers"], shape.bits) == (1, 8)
    assert "quantization" not in shape.config
    assert read_shape(str(STORIES)).config["model_type"] == "mistral"
    with pytest.raises(UsageError, match="no shape of this name, and no file"):
        read_shape("mistral-8b")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not an object"):
        read_shape(str(tmp_path / "list.json"))
    (tmp_path / "list.json").write_text("[")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_shape(str(tmp_path / "list.json"))
    with pytest.raises(UsageError, match="layers"):
        read_shape("mistral-7b", layers=0)
    with pytest.raises(UsageError, match="bits"):
        random_model(Shape("tiny", TINY, bits=7))


def test_the_bandwidth_is_a_rate() -> None:
    rates, how = memory_bandwidth(1 << 20)
    assert rates.min > 0
    assert "1 MiB" in how


def test_a_cpu_reads_with_all_usable_cores_or_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: 2.0, 3: 5.0}
    monkeypatch.setattr(bandwidth, "backend", lambda: "cpu")
    monkeypatch.setattr(bandwidth, "usable_cores", lambda: 3)
    monkeypatch.setattr(bandwidth, "_host_reads", lambda size, threads: Spread.of([rates[threads]]))
    found, how = memory_bandwidth(3 << 20)
    assert (found.median, how) == (5.0, "reads of 3 MiB by 3 threads")
    rates[1] = 6.0
    assert memory_bandwidth(3 << 20)[1] == "reads of 3 MiB by 1 thread"


def test_small_shapes_are_read() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    shape = read_shape(str(folder / "small-moe.json"), bits=4)
    assert (shape.config["model_type"], shape.config["num_local_experts"]) == ("mixtral", 8)
    assert read_shape(str(folder / "small.json")).config["model_type"] == "mistral"


def test_spreads() -> None:
    spread = Spread.of(iter([4.0, 1.0, 2.0]))
    assert (spread.median, spread.min, spread.max, spread.values) == (2, 1, 4, (4, 1, 2))
    assert spread.over(Spread.of([2.0, 1.0, 1.0])).values == (2, 1, 2)


def test_the_chart_is_a_picture_of_the_figures() -> None:
    from xml.etree import ElementTree

    found = core.bench(Shape("<tiny>", TINY), **SHORT)
    # As measured; a limit that is far away and not drawn; one that is exceeded, as what fits a cache can be.
    for lengths, limit in itertools.product((found.lengths, found.lengths[:1]), (None, 1e9, 0.01)):
        if limit is not None:
            lengths = tuple(dataclasses.replace(length, decode_limit=limit) for length in lengths)
        root = ElementTree.fromstring(decode_chart(dataclasses.replace(found, lengths=lengths)))
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("<tiny>, random weights" in str(text) for text in texts)
        assert {f"{length.context:,}" for length in lengths} <= set(texts)
        circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
        assert len(circles) == len(lengths)
        assert all(0 < float(circle.get("cy", "")) < 420 for circle in circles)
