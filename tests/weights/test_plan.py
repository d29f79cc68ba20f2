"""Plans predict what a load then does: shapes, dtypes, names; and maps run backwards to the very tensors."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import core
from core.checkpoint import open_checkpoint
from core.errors import PluginError, WeightsError
from core.loading import prepare
from core.nn import FusedLinear
from core.weights import Concat, Plan, Source, Stack, WeightMap, checkpoint_tensors
from core.weights.load import execute
from core.weights.planning import make_plan
from core.weights.summary import summarise
from core.weights.tree import all_arrays, find
from tests.fixtures import oracle, oracles
from tests.fixtures.quantized import write_pair
from tests.weights.test_quantized import CASES

MIXTRAL = oracle("mixtral_8e_top3")


def tensors_of(path: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for shard in open_checkpoint(path).shards:
        arrays = mx.load(str(path / shard))
        assert isinstance(arrays, dict)
        found |= arrays
    return found


def check_prediction(plan: Plan, model: nn.Module) -> None:
    assert [entry.parameter for entry in plan.entries] == list(all_arrays(model))
    for entry in plan.entries:
        array = find(model, entry.parameter)
        assert (entry.shape, entry.dtype) == (array.shape, array.dtype)
    assert plan.bytes == sum(array.nbytes for array in all_arrays(model).values())


@pytest.mark.parametrize("name", oracles())
def test_a_plan_predicts_every_parameter(name: str) -> None:
    lm = core.load(oracles()[name], tokenizer=False)
    check_prediction(lm.report.plan, lm.model)
    assert lm.report.plan.parameters == sum(array.size for array in tensors_of(oracles()[name]).values())


@pytest.mark.parametrize("name", CASES)
def test_a_plan_predicts_every_parameter_of_a_quantized_model(name: str, tmp_path: Path) -> None:
    lm = core.load(CASES[name].write(tmp_path).quantized, tokenizer=False)
    check_prediction(lm.report.plan, lm.model)


def check_round_trip(path: Path, layout: str = "hf") -> None:
    prepared = prepare(path)
    execute(prepared.plan, prepared.model, prepared.checkpoint)
    weight_map = prepared.bound.weight_map(prepared.config, layout)
    assert weight_map is not None
    back, stored = checkpoint_tensors(prepared.model, weight_map), tensors_of(path)
    assert back.keys() == stored.keys()
    for name, array in stored.items():
        assert back[name].shape == array.shape
        assert mx.array_equal(back[name], array.astype(back[name].dtype)).item(), name


@pytest.mark.parametrize("name", oracles())
def test_a_map_runs_backwards_to_the_tensors_of_the_file(name: str) -> None:
    check_round_trip(oracles()[name])


@pytest.mark.parametrize("name", CASES)
def test_a_map_runs_backwards_to_quantized_tensors(name: str, tmp_path: Path) -> None:
    check_round_trip(CASES[name].write(tmp_path).quantized, "mlx" if CASES[name].mlx_layout else "hf")


class Toy(nn.Module):
    """One fused projection, plain or of experts."""

    def __init__(self, inputs: int, parts: dict[str, int], experts: int | None, bias: bool) -> None:
        super().__init__()
        self.proj = FusedLinear(inputs, parts, bias=bias, experts=experts)


def plan_of(model: nn.Module, rules: dict[str, Source], path: Path, ranges: dict[str, range] | None = None) -> Plan:
    return make_plan(
        model,
        WeightMap(rules, ranges or {}),
        open_checkpoint(path).tensors,
        source=str(path),
        model_type="toy",
        plugin="toy",
        layout="hf",
        cache_specs=(),
    )


@given(
    inputs=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    experts=st.none() | st.integers(1, 3),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_concatenation_and_stacking_are_numpys(
    inputs: int, sizes: list[int], experts: int | None, bias: bool, tmp_path: Path
) -> None:
    parts = {f"p{i}": size for i, size in enumerate(sizes)}
    random = np.random.default_rng(len(sizes))
    prefixes = [""] if experts is None else [f"{i}." for i in range(experts)]
    arrays = {}
    for prefix in prefixes:
        for name, size in parts.items():
            arrays[f"{prefix}{name}.weight"] = random.normal(size=(size, inputs)).astype(np.float32)
            if bias:
                arrays[f"{prefix}{name}.bias"] = random.normal(size=size).astype(np.float32)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {name: mx.array(a) for name, a in arrays.items()})
    source: Source = Concat(*parts) if experts is None else Stack(Concat(*(f"{{e}}.{p}" for p in parts)), over="e")
    model = Toy(inputs, parts, experts, bias)
    plan = plan_of(model, {"proj": source}, tmp_path, {} if experts is None else {"e": range(experts)})
    execute(plan, model, open_checkpoint(tmp_path))
    check_prediction(plan, model)
    for role in ("weight", "bias") if bias else ("weight",):
        rows = [np.concatenate([arrays[f"{prefix}{name}.{role}"] for name in parts]) for prefix in prefixes]
        expected = rows[0] if experts is None else np.stack(rows)
        np.testing.assert_array_equal(np.array(getattr(model.proj.linears[0], role)), expected)


@given(order=st.permutations(range(4)), cuts=st.sets(st.integers(1, 3)), bias=st.booleans())
@settings(deadline=None, max_examples=30)
def test_any_grouping_of_parts_computes_the_same(order: list[int], cuts: set[int], bias: bool) -> None:
    parts = {"a": 3, "b": 1, "c": 2, "d": 4}
    names, bounds = list(parts), [0, *sorted(cuts), 4]
    groups = [[names[i] for i in sorted(order[start:stop])] for start, stop in pairwise(bounds)]
    whole, split = FusedLinear(5, parts, bias=bias), FusedLinear(5, parts, bias=bias)
    split.regroup(groups)
    assert split.groups == tuple(map(tuple, groups))
    edges = np.cumsum([0, *parts.values()])
    rows = {name: slice(int(edges[i]), int(edges[i + 1])) for i, name in enumerate(parts)}
    for group, linear in zip(groups, split.linears, strict=True):
        for role in ("weight", "bias") if bias else ("weight",):
            source = getattr(whole.linears[0], role)
            setattr(linear, role, mx.concatenate([source[rows[name]] for name in group]))
    x = mx.random.normal((2, 5), key=mx.random.key(0))
    for one, other in zip(whole(x), split(x), strict=True):
        assert mx.allclose(one, other, atol=1e-6).item()
    assert mx.allclose(whole.joined(x), split.joined(x), atol=1e-6).item()


def test_experts_in_stacks_and_experts_apart_are_one_model(tmp_path: Path) -> None:
    pair = write_pair(MIXTRAL, tmp_path, lambda path: None, {}, mlx_layout=True)
    stacked, apart = core.load(pair.dequantized, tokenizer=False), core.load(MIXTRAL, tokenizer=False)
    assert (stacked.report.plan.layout, apart.report.plan.layout) == ("mlx", "hf")
    tokens = mx.array([[1, 5, 9, 200]])
    assert mx.array_equal(stacked.model(tokens), apart.model(tokens)).item()


@pytest.mark.parametrize(("experts", "layout"), [(2, "hf"), (2, "mlx"), (64, "hf"), (64, "mlx")])
def test_a_layout_is_recognised_whatever_the_config_says_of_experts(experts: int, layout: str, tmp_path: Path) -> None:
    path = write_pair(MIXTRAL, tmp_path, lambda path: None, {}, mlx_layout=layout == "mlx").dequantized
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"num_local_experts": experts, "num_experts_per_tok": 2}))
    plan = core.plan(path)
    assert plan.layout == layout
    assert not plan.ok


ANCHORED = [
    "xmodel.norm.weight",
    "model.norm.weight.x",
    "model.layers.30.mlp.up_proj.weight",
    "odel.norm.weight",
    "model.norm",
]


@pytest.mark.parametrize("name", ANCHORED)
def test_names_are_matched_whole(name: str, tmp_path: Path) -> None:
    tensors = tensors_of(oracle("mistral_swa8"))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors | {name: mx.zeros((64,))})
    (tmp_path / "config.json").write_text((oracle("mistral_swa8") / "config.json").read_text())
    assert core.plan(tmp_path).unexpected == (name,)


def test_recomputed_tensors_are_ignored_with_a_reason(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    tensors = tensors_of(oracle("mistral_swa8"))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors | {name: mx.zeros((4,))})
    (tmp_path / "config.json").write_text((oracle("mistral_swa8") / "config.json").read_text())
    plan = core.plan(tmp_path)
    assert plan.ok
    assert dict(plan.ignored) == {name: "recomputed from the config"}


MODEL_FAULTS: dict[str, tuple[dict[str, Source], type[Exception], str]] = {
    "no such target": ({"proj": Concat("a", "b"), "other": "c"}, PluginError, "'other' is neither a module nor"),
    "another number of parts": ({"proj": Concat("a", "b", "c")}, PluginError, "expected Concat of 2 parts (a, b)"),
    "no concatenation": ({"proj": "a"}, PluginError, "found no Concat"),
    "a parameter twice": (
        {"proj": Concat("a", "b"), "proj.linears.0.weight": "c.weight"},
        PluginError,
        "parameter 'proj.linears.0.weight' twice",
    ),
    "no rule": ({}, WeightsError, "no rule for proj.linears.0.weight"),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_map_that_does_not_fit_its_model_is_a_fault_of_the_plugin(fault: str, tmp_path: Path) -> None:
    rules, error, said = MODEL_FAULTS[fault]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {f"{n}.weight": mx.zeros((2, 3)) for n in "abc"})
    with pytest.raises(error) as caught:
        plan_of(Toy(3, {"a": 2, "b": 2}, None, False), rules, tmp_path)
    assert said in str(caught.value)


SUMMARIES: dict[str, tuple[list[str], str]] = {
    "one": (["a.0.w"], "a.0.w"),
    "a range": ([f"a.{i}.w" for i in range(32)], "a.{0-31}.w (32 tensors)"),
    "runs": (["a.1.w", "a.2.w", "a.3.w", "a.7.w"], "a.{1-3,7}.w (4 tensors)"),
    "two numbers": ([f"l.{i}.e.{j}" for i in range(2) for j in (4, 5)], "l.{0-1}.e.{4-5} (4 tensors)"),
    "many": (list("abcdef"), "a, b, c, d, and 2 more patterns"),
    "a line break in a name": (["a\nb.0", "a\nb.1"], "a\\nb.{0-1} (2 tensors)"),
    "a very long name": (["a" * 1000], "a" * 160),
    "braces in a name": (["a.{x}.0", "a.{x}.1"], "a.{x}.{0-1} (2 tensors)"),
}


@pytest.mark.parametrize("case", SUMMARIES)
def test_long_lists_of_names_read_short(case: str) -> None:
    names, expected = SUMMARIES[case]
    assert summarise(names) == expected


def test_a_plan_is_data(tmp_path: Path) -> None:
    plan = core.plan(MIXTRAL)
    values: dict[str, Any] = {entry.parameter: entry for entry in plan.entries}
    down = values["layers.1.block_sparse_moe.experts.down_proj.weight"]
    assert down.shape == (8, 64, 128)
    assert down.tensors == [f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight" for i in range(8)]
    assert down.storage == "F32"
    assert plan.kv_bytes(100) == 2 * 100 * 2 * 2 * 8 * 4  # layers, tokens, key and value, heads, head_dim, float32
    assert plan.kv_bytes(100, batch=3) == 3 * plan.kv_bytes(100)
    assert core.plan(oracle("mixtral_swa8")).kv_bytes(100) == plan.kv_bytes(8)
