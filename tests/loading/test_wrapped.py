"""A text model within another: its own type's plugin builds it, and it computes what transformers' wrapper computes."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import core
import plugins.mistral as mistral
from core.errors import ConfigError, UnknownModelTypeError, WeightsError
from core.loading import prepare
from core.weights import checkpoint_tensors
from core.weights.tree import all_arrays
from tests.fixtures import FIXTURES, oracle, real_config, reference
from tests.fixtures.layouts import arrays_of, config_of, in_layout
from tests.fixtures.variants import REMOVED
from tests.loading.test_oracles import check, logits_of

WRAPPED = FIXTURES / "wrapped" / "mistral3"
MIXTRAL = oracle("mixtral_swa8")
TIE = "tie_word_embeddings"


def write(directory: Path, tensors: dict[str, mx.array], config: dict[str, Any], source: Path = WRAPPED) -> Path:
    directory.mkdir(exist_ok=True)
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "reference.npz").symlink_to(source / "reference.npz")
    return directory


def tied(outer: Any, inner: Any) -> dict[str, Any]:
    """The wrapper's config with other words on tied embeddings."""
    raw = config_of(WRAPPED)
    raw = {**raw, TIE: outer, "text_config": {**raw["text_config"], TIE: inner}}
    clean = {key: value for key, value in raw.items() if value is not REMOVED}
    return clean | {"text_config": {k: v for k, v in raw["text_config"].items() if v is not REMOVED}}


def in_memory(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """The names of ``state_dict()``, by transformers' conversion of the published ones."""
    names = {}
    for name in tensors:
        text = name.removeprefix("language_model.")
        if text == name:
            names[name] = f"model.{name}"
        else:
            names[name] = text if text.startswith("lm_head") else f"model.language_model.{text.removeprefix('model.')}"
    return {names[name]: array for name, array in tensors.items()}


def test_logits_and_continuations_are_transformers() -> None:
    lm = check(WRAPPED)
    assert lm.config.model_type == "mistral3"
    assert lm.report.plan.plugin == "plugins.mistral3 (corelm 0.1.0) with plugins.mistral (corelm 0.1.0)"
    assert lm.report.claim.tier == "bundled"
    reasons = {name.partition(".")[0]: why for name, why in lm.report.plan.ignored.items()}
    assert reasons == {
        "vision_tower": "of the vision tower: text only",
        "multi_modal_projector": "of the image input: text only",
    }
    assert core.plan(WRAPPED, strict=True).ok


def test_the_names_in_memory_are_a_layout_too(tmp_path: Path) -> None:
    tensors = in_memory(arrays_of(WRAPPED))
    assert sorted(tensors) == json.loads((WRAPPED / "meta.json").read_text())["names_in_memory"]
    lm, usual = check(write(tmp_path / "x", tensors, config_of(WRAPPED))), core.load(WRAPPED, tokenizer=False)
    assert (lm.report.plan.layout, usual.report.plan.layout) == ("hf-fused", "hf")
    ours, theirs = all_arrays(lm.model), all_arrays(usual.model)
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[path], theirs[path]).item() for path in ours)


@pytest.mark.parametrize("layout", ["hf", "hf-fused"])
def test_the_text_is_written_back_byte_by_byte(layout: str) -> None:
    lm, prepared = core.load(WRAPPED, tokenizer=False), prepare(WRAPPED)
    weight_map = prepared.bound.weight_map(prepared.config, layout)
    assert weight_map is not None
    stored = arrays_of(WRAPPED) if layout == "hf" else in_memory(arrays_of(WRAPPED))
    text = {name: array for name, array in stored.items() if "vision" not in name and "multi_modal" not in name}
    back = checkpoint_tensors(lm.model, weight_map)
    assert back.keys() == text.keys()
    assert all(mx.array_equal(back[name], text[name]).item() for name in text)


@pytest.mark.parametrize("layout", ["hf", "mlx"])
def test_the_type_of_the_text_decides_who_builds_it(layout: str, tmp_path: Path) -> None:
    tensors = {f"language_model.{n}": a for n, a in in_layout(arrays_of(MIXTRAL), {}, layout).items()}
    config = {"model_type": "mistral3", "text_config": config_of(MIXTRAL), "vision_config": {}}
    lm = check(write(tmp_path / "x", tensors, config, MIXTRAL))
    assert lm.report.plan.layout == layout
    assert "with plugins.mixtral" in lm.report.plan.plugin
    assert lm.config.sliding_window == 8  # type: ignore[attr-defined]


def test_a_quantized_text_model(tmp_path: Path) -> None:
    settings = {"bits": 4, "group_size": 32}
    packed, plain = {}, {}
    for name, array in arrays_of(WRAPPED).items():
        stem = name.removesuffix(".weight")
        if array.ndim != 2 or not name.startswith("language_model"):
            packed[name] = plain[name] = array
            continue
        parts = mx.quantize(array, **settings)
        packed |= {f"{stem}.{role}": part for role, part in zip(("weight", "scales", "biases"), parts, strict=True)}
        plain[name] = mx.dequantize(*parts, **settings)
    config = config_of(WRAPPED)
    one = core.load(write(tmp_path / "q", packed, config | {"quantization": settings}), tokenizer=False)
    other = core.load(write(tmp_path / "d", plain, config), tokenizer=False)
    ids = reference(WRAPPED)["input_ids"]
    np.testing.assert_allclose(logits_of(one, ids), logits_of(other, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("outer", "inner"), [(True, REMOVED), (True, False), (REMOVED, True)])
def test_a_tied_text_model(outer: Any, inner: Any, tmp_path: Path) -> None:
    tensors = {name: array for name, array in arrays_of(WRAPPED).items() if "lm_head" not in name}
    assert core.load(write(tmp_path / "x", tensors, tied(outer, inner)), tokenizer=False).config.tie_word_embeddings


@pytest.mark.parametrize(("outer", "inner"), [(REMOVED, REMOVED), (False, True), (REMOVED, False)])
def test_an_untied_text_model(outer: Any, inner: Any, tmp_path: Path) -> None:
    """The outer word counts, as in transformers; where neither is said, the head that is there does."""
    check(write(tmp_path / "x", arrays_of(WRAPPED), tied(outer, inner)))


def test_a_head_that_contradicts_the_config_is_refused(tmp_path: Path) -> None:
    """transformers takes the head and warns; to leave it unread would compute something else without a word."""
    with pytest.raises(WeightsError, match=r'unexpected language_model\.lm_head\.weight\n.*embeddings": false'):
        core.load(write(tmp_path / "x", arrays_of(WRAPPED), tied(True, False)), tokenizer=False)


def test_a_text_type_that_nobody_claims_is_named(tmp_path: Path) -> None:
    """Ministral 3 scales its queries by their position: not a Mistral, whatever its tensors are called."""
    raw = real_config("Ministral-3-3B-2512") | {"model_type": "mistral3"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnknownModelTypeError) as caught:
        core.load_config(tmp_path)
    assert "mistral3" in str(caught.value)
    assert "no installed plugin loads model_type 'ministral3'" in str(caught.value)


@pytest.mark.parametrize("value", [None, "mistral", []])
def test_a_wrapper_without_a_text_model_is_refused(value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": value}))
    with pytest.raises(ConfigError, match=r"config\.json: key 'text_config' is"):
        core.load_config(tmp_path)


def test_keys_of_the_text_that_nobody_reads_are_reported(tmp_path: Path) -> None:
    raw = config_of(WRAPPED)
    raw["text_config"]["unheard_of"] = raw["odd"] = 1
    plan = core.plan(write(tmp_path / "x", arrays_of(WRAPPED), raw))
    assert plan.unread_keys == ("odd", "text_config.unheard_of")


def test_the_config_shows_the_text_models_settings() -> None:
    config = core.load_config(WRAPPED)
    assert (config.head_dim, config.num_key_value_heads) == (24, 2)  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    with pytest.raises(AttributeError, match="nothing"):
        config.nothing  # type: ignore[attr-defined]  # noqa: B018


class Recorder:
    """Mistral's own hooks, and who was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @core.hookimpl
    def parse_config(self, config: dict[str, Any]) -> Any:
        self.asked.append("parse_config")
        return mistral.parse_config(config)

    @core.hookimpl
    def weight_map(self, config: Any, layout: str) -> Any:
        return mistral.weight_map(config, layout)

    @core.hookimpl
    def build_block(self, config: Any) -> Any:
        self.asked.append("build_block")
        return mistral.build_block(config)

    @core.hookimpl
    def model_loaded(self) -> None:
        self.asked.append("model_loaded")


def test_the_delegate_is_chosen_as_for_its_own_load_and_each_load_has_one() -> None:
    first = prepare(WRAPPED).bound
    recorder = Recorder()
    core.register("mistral", recorder)
    try:
        lm = core.load(WRAPPED, tokenizer=False)
        assert recorder.asked.count("build_block") == 2
        assert recorder.asked[-1] == "model_loaded"
        assert lm.report.plan.plugin.endswith("with Recorder")
        before = len(recorder.asked)
        first.build_block(core.load_config(WRAPPED), 0)  # a delegate that was bound earlier stays
        assert "build_block" not in recorder.asked[before:]
    finally:
        core.unregister("mistral")
