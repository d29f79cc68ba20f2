"""Weight maps as tables: finite, anchored, each name once; and what is wrong with one is a fault of its plugin."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import PluginError, WeightsError
from core.weights import Concat, Source, Stack, WeightMap
from core.weights.nodes import Joined, Leaf, Row, Stacked, joined_parts, leaves, select, with_suffix
from plugins.mistral.config import MistralConfig
from plugins.mistral.weights import hf_weight_map
from plugins.mixtral.config import MixtralConfig
from plugins.mixtral.weights import weight_map_for
from tests.fixtures import real_config, real_index

QUIET = settings(deadline=None, max_examples=60)
RANGES = {"layer": range(3), "expert": range(2)}
SIZES = st.integers(1, 5)


def expand(rules: dict[str, Source], ranges: dict[str, range] | None = None) -> list[Row]:
    return WeightMap(rules, RANGES if ranges is None else ranges).expand()


def test_operations_expand_to_concrete_names_in_order() -> None:
    rules: dict[str, Source] = {
        "norm": "model.norm",
        "layers.{layer}.qkv": Concat("m.{layer}.q", "m.{layer}.k"),
        "layers.{layer}.experts": Stack(Concat("m.{layer}.{expert}.w1", "m.{layer}.{expert}.w3"), over="expert"),
    }
    rows = {row.target: row.source for row in expand(rules)}
    assert list(rows) == ["norm", *(f"layers.{i}.{name}" for name in ("qkv", "experts") for i in range(3))]
    assert rows["norm"] == Leaf("model.norm")
    assert rows["layers.2.qkv"] == Joined((Leaf("m.2.q"), Leaf("m.2.k")))
    experts = Stacked(tuple(Joined((Leaf(f"m.1.{e}.w1"), Leaf(f"m.1.{e}.w3"))) for e in range(2)))
    assert rows["layers.1.experts"] == experts
    assert leaves(experts) == ["m.1.0.w1", "m.1.0.w3", "m.1.1.w1", "m.1.1.w3"]
    assert leaves(with_suffix(experts, "scales"))[0] == "m.1.0.w1.scales"
    assert joined_parts(experts) == 2
    assert leaves(select(experts, (1,))) == ["m.1.0.w3", "m.1.1.w3"]
    assert joined_parts(select(experts, (1,))) is None


@given(layers=SIZES, experts=SIZES, parts=st.integers(1, 4), order=st.permutations(["layer", "expert"]))
@QUIET
def test_a_table_is_finite_anchored_and_one_to_one(layers: int, experts: int, parts: int, order: list[str]) -> None:
    ranges = {"layer": range(layers), "expert": range(experts)}
    pattern = ".".join(f"{name}s.{{{name}}}" for name in order)
    rules: dict[str, Source] = {
        f"ours.{pattern}.up": Concat(*(f"theirs.{pattern}.part{i}" for i in range(parts))),
        "ours.{layer}.down": Stack("theirs.{layer}.{expert}.down", over="expert"),
        "ours.norm": "theirs.norm",
    }
    rows = expand(rules, ranges)
    targets, sources = [row.target for row in rows], [leaf for row in rows for leaf in leaves(row.source)]
    assert len(targets) == len(set(targets)) == layers * experts + layers + 1
    assert len(sources) == len(set(sources)) == parts * layers * experts + layers * experts + 1
    numbers = {name: "|".join(map(str, values)) for name, values in ranges.items()}
    whole = (
        re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}").format(**{k: f"({v})" for k, v in numbers.items()})
    )
    for row in rows:
        if row.target.endswith(".up"):
            match = re.fullmatch(rf"ours\.{whole}\.up", row.target)
            assert match
            for part, leaf in enumerate(leaves(row.source)):  # a source has its target's own numbers
                found = re.fullmatch(rf"theirs\.{whole}\.part{part}", leaf)
                assert found
                assert found.groups() == match.groups()


@given(node_parts=st.integers(1, 5), chosen=st.data())
@QUIET
def test_a_selection_keeps_order_and_suffix(node_parts: int, chosen: Any) -> None:
    source = Stack(Concat(*(f"{{expert}}.p{i}" for i in range(node_parts))), over="expert")
    node = expand({"x": source})[0].source
    indices = tuple(sorted(chosen.draw(st.sets(st.integers(0, node_parts - 1), min_size=1))))
    expected = [f"{e}.p{i}.bias" for e in RANGES["expert"] for i in indices]
    assert leaves(with_suffix(select(node, indices), "bias")) == expected


FAULTS: dict[str, tuple[dict[str, Source], str]] = {
    "a target twice": ({"a.0": "x", "a.{expert}": "y.{expert}"}, "target 'a.0' twice"),
    "a source twice": ({"a": "x", "b": "x"}, "source 'x' twice"),
    "a source twice in one": ({"a": Concat("x", "x")}, "source 'x' twice"),
    "a source for all layers": ({"a.{layer}": "x"}, "source 'x' twice"),
    "an unknown placeholder": ({"a.{block}": "x.{block}"}, "{block} without a range"),
    "an unbound placeholder": ({"a.{layer}": "x.{layer}.{expert}"}, "uses {expert}, which neither"),
    "an unknown placeholder of a stack": ({"a": Stack("x.{head}", over="head")}, "{head} without a range"),
    "an empty placeholder": ({"a.{}": "x"}, "{} without a range"),
    "a formatted placeholder": ({"a.{layer!r}": "x"}, "{layer!r} without a range"),
    "a format of a placeholder": ({"a.{layer:02}": "x"}, "{layer:02} without a range"),
    "an attribute of a placeholder": ({"a.{layer.real}": "x"}, "{layer.real} without a range"),
    "an open brace": ({"a.{layer": "x"}, "malformed path 'a.{layer'"),
    "a closing brace": ({"a": "x}"}, "malformed path 'x}'"),
    "an empty segment": ({"a..b": "x"}, "malformed path 'a..b'"),
    "an empty path": ({"a": ""}, "malformed path ''"),
    "a dot at the end": ({"a": "x."}, "malformed path 'x.'"),
    "a wildcard": ({"a": "x.*"}, "malformed path 'x.*'"),
    "a regular expression": ({"a": r"x.\d+"}, "malformed path"),
    "a space": ({"a b": "x"}, "malformed path 'a b'"),
    "a concatenation of nothing": ({"a": Concat()}, "a Concat of nothing"),
    "a stack of nothing": ({"a": Stack("x.{none}", over="none")}, "whose range is empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_map_is_refused(fault: str) -> None:
    rules, said = FAULTS[fault]
    with pytest.raises(PluginError) as caught:
        expand(rules, {**RANGES, "none": range(0)})
    assert said in str(caught.value)


def test_a_table_longer_than_any_checkpoint_is_refused_before_it_is_made() -> None:
    rules: dict[str, Source] = {"layers.{layer}.up": Stack("m.{layer}.{expert}", over="expert")}
    with pytest.raises(WeightsError, match=r"1,000,000,000,000 matrices .*1,000,000 of \{layer\}"):
        expand(rules, {"layer": range(10**6), "expert": range(10**6)})


def test_ignored_names_expand_too() -> None:
    weight_map = WeightMap({}, RANGES, {"m.{layer}.inv_freq": "recomputed", "head.weight": "tied"})
    assert weight_map.expand_ignored() == {
        **{f"m.{i}.inv_freq": "recomputed" for i in range(3)},
        "head.weight": "tied",
    }


PUBLISHED = ["WizardLM-2-8x22B", "Dolphin3.0-R1-Mistral-24B", "Devstral-Small-2507"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_maps_of_the_built_in_plugins_cover_published_indexes_exactly(name: str) -> None:
    """Tensor for tensor: nothing of a published checkpoint is missing in the map, and nothing is left over."""
    raw = real_config(name)
    if raw["model_type"] == "mixtral":
        weight_map = weight_map_for(MixtralConfig.from_dict(raw), "hf")
    else:
        weight_map = hf_weight_map(MistralConfig.from_dict(raw))
    assert weight_map is not None
    names = [f"{leaf}.weight" for row in weight_map.expand() for leaf in leaves(row.source)]
    assert sorted(names) == sorted(real_index(name))
    if name == "WizardLM-2-8x22B":
        assert len(names) == 1739
