"""Every rule runs both ways: for random shapes, experts, biases and packed matrices, what is loaded by a map has the
shapes that the plan predicted and is written back, by the same map, as the bytes it came from."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.checkpoint import open_checkpoint
from core.errors import PluginError, UsageError, WeightsError
from core.nn import ExpertLinear, FusedLinear
from core.weights import (
    Concat,
    Fused,
    Permute,
    Plan,
    Quantization,
    QuantizationConfig,
    Source,
    Stack,
    WeightMap,
    Whole,
    checkpoint_tensors,
)
from core.weights.load import execute
from core.weights.permute import to_halves, to_pairs
from core.weights.planning import make_plan
from core.weights.rules import reason_for
from core.weights.tree import all_arrays

RANDOM = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
PACKED = Quantization(4, 32)
HALVES = st.integers(1, 3)  # half the size of a head
HEADS = st.integers(1, 4)


class Toy(nn.Module):
    """One projection."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj


def make(model: nn.Module, rules: dict[str, Source], path: Path, ranges: dict[str, range], packed: bool) -> Plan:
    return make_plan(
        model,
        WeightMap(rules, ranges),
        open_checkpoint(path).tensors,
        source=str(path),
        model_type="toy",
        plugin="toy",
        layout="toy",
        cache_specs=(),
        quantization=QuantizationConfig(PACKED) if packed else None,
        dtype=mx.float32,
    )


def check(proj: nn.Module, source: Source, stored: dict[str, mx.array], path: Path, experts: int, packed: bool) -> None:
    """Loads ``stored`` into ``proj`` by the rule, and back."""
    ranges = {"expert": range(experts)}
    mx.save_safetensors(str(path / "model.safetensors"), stored)
    model, rules = Toy(proj), {"proj": source}
    plan = make(model, rules, path, ranges, packed)
    plan.check()
    execute(plan, model, open_checkpoint(path))
    assert {entry.parameter: entry.shape for entry in plan.entries} == {
        name: array.shape for name, array in all_arrays(model).items()
    }
    back = checkpoint_tensors(model, WeightMap(rules, ranges))
    assert back.keys() == stored.keys()
    for name, array in stored.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert mx.array_equal(back[name], array).item()


def tensors(name: str, shape: tuple[int, ...], bias: bool, packed: bool) -> dict[str, mx.array]:
    """A projection as a file has it."""
    weight = mx.random.normal(shape)
    parts = mx.quantize(weight, PACKED.group_size, PACKED.bits) if packed else (weight,)
    found = {f"{name}.{role}": part for role, part in zip(("weight", "scales", "biases"), parts, strict=False)}
    return found | ({f"{name}.bias": mx.random.normal(shape[:-1])} if bias else {})


@given(heads=HEADS, half=HALVES, batch=st.lists(st.integers(1, 3), max_size=2), columns=st.integers(1, 3))
@RANDOM
def test_halves_and_pairs_are_inverse_and_move_rows_only(heads: int, half: int, batch: list[int], columns: int) -> None:
    rows = heads * half * 2
    x = mx.random.normal((*batch, rows, columns))
    y = to_halves(x, heads, -2)
    assert mx.array_equal(to_pairs(y, heads, -2), x).item()
    assert mx.array_equal(to_halves(to_pairs(x, heads, -2), heads, -2), x).item()
    assert mx.array_equal(to_halves(x[..., 0], heads, -1), y[..., 0]).item()  # a bias goes as its matrix's rows go
    order = [h * 2 * half + 2 * j + side for h in range(heads) for side in (0, 1) for j in range(half)]
    assert mx.array_equal(y, x[..., mx.array(order), :]).item()


@given(heads=HEADS, half=HALVES, bias=st.booleans(), packed=st.booleans())
@RANDOM
def test_permute(heads: int, half: int, bias: bool, packed: bool, tmp_path: Path) -> None:
    rows, inputs = heads * half * 2, 32 if packed else 3
    stored = tensors("q", (rows, inputs), bias, packed)
    check(nn.Linear(inputs, rows, bias=bias), Permute("q", heads), stored, tmp_path, 1, packed)


@given(heads=HEADS, shared=HEADS, half=HALVES, bias=st.booleans(), packed=st.booleans())
@RANDOM
def test_permuted_parts_of_a_concatenation(
    heads: int, shared: int, half: int, bias: bool, packed: bool, tmp_path: Path
) -> None:
    sizes, inputs = {"q": heads * half * 2, "k": shared * half * 2, "v": 3}, 32 if packed else 3
    stored = {n: a for name, rows in sizes.items() for n, a in tensors(name, (rows, inputs), bias, packed).items()}
    source = Concat(Permute("q", heads), Permute("k", shared), "v")
    check(FusedLinear(inputs, sizes, bias=bias), source, stored, tmp_path, 1, packed)


@given(rows=st.integers(1, 3), experts=st.integers(1, 3), heads=HEADS, bias=st.booleans(), packed=st.booleans())
@RANDOM
def test_stacked_experts_permuted_or_not(
    rows: int, experts: int, heads: int, bias: bool, packed: bool, tmp_path: Path
) -> None:
    sizes, inputs = {"gate": 2 * heads, "up": rows}, 32 if packed else 3
    stored: dict[str, mx.array] = {}
    for expert in range(experts):
        for name, size in sizes.items():
            stored |= tensors(f"{expert}.{name}", (size, inputs), bias, packed)
    source = Stack(Concat(Permute("{expert}.gate", heads), "{expert}.up"), over="expert")
    check(FusedLinear(inputs, sizes, bias=bias, experts=experts), source, stored, tmp_path, experts, packed)


@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    experts=st.none() | st.integers(1, 3),
    **{"bias": st.booleans(), "packed": st.booleans()},
)
@RANDOM
def test_parts_that_are_fused_already(
    rows: list[int], experts: int | None, bias: bool, packed: bool, tmp_path: Path
) -> None:
    sizes, inputs = {f"part{i}": size for i, size in enumerate(rows)}, 32 if packed else 3
    shape = (sum(rows), inputs) if experts is None else (experts, sum(rows), inputs)
    proj = FusedLinear(inputs, sizes, bias=bias, experts=experts)
    check(proj, Fused("x.both"), tensors("x.both", shape, bias, packed), tmp_path, 1, packed)
    assert proj.groups == (tuple(sizes),)


@given(rows=st.integers(1, 4), experts=st.integers(1, 3), fused=st.booleans())
@RANDOM
def test_whole_tensors(rows: int, experts: int, fused: bool, tmp_path: Path) -> None:
    stored = {"x.down": mx.random.normal((experts, 2 * rows, 3))}
    whole = Whole("x.down")
    proj = FusedLinear(3, {"a": rows, "b": rows}, experts=experts) if fused else ExpertLinear(experts, 3, 2 * rows)
    check(proj, Fused(whole) if fused else whole, stored, tmp_path, 1, False)


def test_rows_that_make_no_heads_are_a_fault_of_the_plugin(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"q.weight": mx.zeros((6, 2))})
    with pytest.raises(PluginError, match=r"permutes 6 rows of 'proj\.weight' as 2 heads"):
        make(Toy(nn.Linear(2, 6, bias=False)), {"proj": Permute("q", 2)}, tmp_path, {}, False)
    with pytest.raises(PluginError, match=r"permutes 'q' \(expected 1 head or more, found 0\)"):
        WeightMap({"proj": Permute("q", 0)}).expand()


def test_a_fused_tensor_of_another_size_does_not_fit(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"both": mx.zeros((5, 2))})
    plan = make(Toy(FusedLinear(2, {"a": 2, "b": 2})), {"proj": Fused(Whole("both"))}, tmp_path, {}, False)
    with pytest.raises(WeightsError, match=r"both in model\.safetensors \(expected shape \[4, 2\], found \[5, 2\]\)"):
        plan.check()


def test_a_whole_tensor_has_no_bias(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"x": mx.zeros((2, 2))})
    with pytest.raises(PluginError, match="whole tensor 'x' for a module that also has 'bias'"):
        make(Toy(nn.Linear(2, 2)), {"proj": Whole("x")}, tmp_path, {}, False)


def test_parts_that_differ_have_no_place_in_one_matrix() -> None:
    proj = FusedLinear(2, {"a": 2, "b": 2})
    proj.regroup([("a",), ("b",)])
    with pytest.raises(UsageError, match=r"stores the parts of 'proj' as one matrix, .* \(found a; b\)"):
        checkpoint_tensors(Toy(proj), WeightMap({"proj": Fused("both")}))


def test_what_lies_below_a_prefix_may_be_left_unread() -> None:
    ignored = WeightMap({}, {"n": range(2)}, {"vision.{n}.**": "vision", "head.weight": "tied"}).expand_ignored()
    assert ignored == {"vision.0.**": "vision", "vision.1.**": "vision", "head.weight": "tied"}
    found = {"vision.0.a.weight": "vision", "vision.1.b": "vision", "head.weight": "tied"}
    assert {name: reason_for(name, ignored) for name in found} == found
    for name in ("vision.2.a", "vision.0", "visions.0.a", "head.weight.x", "a.vision.0.b"):
        assert reason_for(name, ignored) is None
    with pytest.raises(PluginError, match="malformed"):
        WeightMap({}, {}, {"vision.**.weight": "no wildcard but the last"}).expand_ignored()
