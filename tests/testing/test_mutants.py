"""The kit can fail: every mistake in ``tests.testing.mutants`` is caught, and what only a reference tells is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import WeightsError
from tests.testing.mutant import AGAINST_REFERENCE, CHECKS, REFERENCES, Mutant, Plugin, failures
from tests.testing.mutants import MUTANTS
from tests.testing.native import write_native

WITHOUT_REFERENCE = [name for name in CHECKS if name not in AGAINST_REFERENCE]

ONLY_BY_REFERENCE = {
    "attention: key heads tiled, not repeated",
    "attention: no scale",
    "block: attention and feed-forward in parallel",
    "block: norms after instead of before",
    "block: residual dropped",
    "config: another default",
    "map: a name misspelt",
    "map: experts swap gate and up",
    "map: layers upside down",
    "map: not permuted",
    "map: permuted by another number of heads",
    "map: two norms exchanged",
    "map: w3 before w1",
    "mlp: gelu instead of silu",
    "moe: no softmax",
    "moe: softmax before top-k, not normalised",
    "moe: the worst experts",
    "moe: weights in another order than experts",
    "rope: base doubled",
    "rope: interleaved instead of halves",
}
"""Models that are sound, and not the one that was published: no check that asks the model alone can know."""


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(REFERENCES["mistral"], tmp_path_factory.mktemp("native") / "mistral")


def named(mutants: list[Mutant]) -> list[object]:
    return [pytest.param(mutant, id=mutant.name) for mutant in mutants]


@pytest.mark.filterwarnings("ignore::core.kernels.KernelWarning")
@pytest.mark.parametrize("mutant", named([one for one in MUTANTS if not one.needs_reference]))
def test_is_caught_without_a_reference(mutant: Mutant, native: Path) -> None:
    with mutant.around():
        assert list(failures(mutant.kit(native, reference=False), [mutant.by]))


@pytest.mark.parametrize("mutant", named([one for one in MUTANTS if one.needs_reference]))
def test_is_caught_by_a_reference_only(mutant: Mutant, native: Path) -> None:
    found = list(failures(mutant.kit(native, reference=True), [mutant.by]))
    assert [type(error) for _, error in found] in ([AssertionError], [WeightsError])
    assert not dict(failures(mutant.kit(native, reference=False), WITHOUT_REFERENCE))


def test_what_only_a_reference_tells() -> None:
    assert {one.name for one in MUTANTS if one.needs_reference} == ONLY_BY_REFERENCE
    assert len(MUTANTS) - len(ONLY_BY_REFERENCE) >= 25
    assert len({one.name for one in MUTANTS}) == len(MUTANTS)


ALSO = {
    "test_config_is_accepted": "config: holds a function",
    "test_plan_closes_from_headers": "map: a name misspelt",
    "test_quantized_model_survives_saving": "moe: sorted tokens not put back",
    "test_reference_continuation": "cache: not advanced",
    "test_save_load_save_is_stable": "map: a parameter forgotten",
}
"""Checks that are no mutant's own, and one that fails them all the same."""


@pytest.mark.parametrize("check", ALSO)
def test_further_checks_fail(check: str, native: Path) -> None:
    mutant = next(one for one in MUTANTS if one.name == ALSO[check])
    assert list(failures(mutant.kit(native, reference=True), [check]))


def test_every_check_is_seen_to_fail() -> None:
    elsewhere = {"test_layouts"}  # in test_kit.py
    assert {one.by for one in MUTANTS} | ALSO.keys() | elsewhere == set(CHECKS)


@pytest.mark.parametrize("base", ["mistral", "mixtral"])
def test_a_plugin_made_like_the_mutants_without_a_mistake_passes(base: str, native: Path) -> None:
    sound = Mutant("none", Plugin(base), "", base)
    assert not dict(failures(sound.kit(native, reference=True), CHECKS))


def test_the_native_reference_is_sound(native: Path) -> None:
    sound = Mutant("none", Plugin("mistral"), "", native=True)
    assert not dict(failures(sound.kit(native, reference=True), sorted(AGAINST_REFERENCE)))


MESSAGES = {
    "config: coerces strings": r"the config key 'head_dim' is accepted when it is set to '16'",
    "config: a key nobody reads": r"these keys of the config are neither read nor .*sliding_window",
    "config: num_experts_per_tok ignored": r"reads num_experts_per_tok, but another value changes neither",
    "cache: not advanced": r"the logits of 40 tokens differ when they pass a cache in chunks of \[1, 2, 37\]",
    "window: one too many, cache and all": r"make_cache has windows \[9\]",
    "window: one too few": r"does not see the one 21 before it",
    "block: a norm skipped": r"the gradient of 'layers\.0\.post_attention_layernorm\.weight' is zero",
    "block: widens to float32": r"block 0 makes mlx\.core\.float32 of mlx\.core\.(bfloat16|float16)",
    "map: up before gate": r"whose parts are \['gate_proj', 'up_proj'\], with \['up_proj', 'gate_proj'\]",
    "map: a parameter forgotten": r"layout 'hf' has no rule for the parameters \['norm\.weight'\]",
    "moe: the router is quantized": r"rounds the routers \['layers\.0\.block_sparse_moe\.gate\.weight'",
    "contract: a hook in the forward pass": r"the forward pass calls the hooks \['parse_config'\]",
    "contract: a kernel's source is wrong": r"kernel 'swiglu' .* on Fake GPU 9000",
    "attention: no scale": r"block 0 is the first to depart",
    "rope: interleaved instead of halves": r"block 0 is the first to depart, .*\(not at the start: look at positions",
}


@pytest.mark.filterwarnings("ignore::core.kernels.KernelWarning")
@pytest.mark.parametrize("name", MESSAGES)
def test_the_message_says_what_is_wrong(name: str, native: Path) -> None:
    mutant = next(one for one in MUTANTS if one.name == name)
    with mutant.around():
        ((_, error),) = failures(mutant.kit(native, reference=mutant.needs_reference), [mutant.by])
    with pytest.raises(type(error), match=MESSAGES[name]):
        raise error
