"""Every mutant, and the check that must catch it.

    python -m tests.testing.mutants

prints which checks catch each of them without a reference, and which of them only a reference gives away.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import plugins.mixtral
from tests.testing import wrong_blocks as blocks
from tests.testing import wrong_hooks as hooks
from tests.testing.mutant import AGAINST_REFERENCE, CHECKS, REFERENCES, Mutant, Plugin, blocks_with, failures
from tests.testing.native import write_native

LOGITS = "test_reference_logits"
MATTERS = "test_every_config_key_matters"
CACHED = "test_cached_equals_uncached"
BATCH = "test_batch_equals_single_rows"
ORDER = "test_weight_map_keeps_parts_in_order"
WINDOW = "test_window_is_exact"
TIED = "test_head_is_tied_as_configured"
GRADIENTS = "test_gradients_reach_every_parameter"
DTYPES = "test_dtypes_are_as_declared"
EPSILON = "test_norms_take_their_epsilon_from_the_config"


def _mistral(name: str, by: str, change: object, **more: object) -> Mutant:
    """A Mistral whose blocks are changed."""
    return Mutant(name, Plugin("mistral", build_block=blocks_with("mistral", change)), by, **more)  # type: ignore[arg-type]


def _mixtral(name: str, by: str, change: object, **more: object) -> Mutant:
    """A Mixtral whose blocks are changed."""
    plugin = Plugin("mixtral", build_block=blocks_with("mixtral", change))  # type: ignore[arg-type]
    return Mutant(name, plugin, by, "mixtral", **more)  # type: ignore[arg-type]


def _attention(name: str, by: str, kind: type[blocks.Attention]) -> Mutant:
    return _mistral(name, by, blocks.attention(kind))


def _block(name: str, by: str, kind: type[blocks.MistralBlock]) -> Mutant:
    return _mistral(name, by, blocks.as_block(kind))


def _map(name: str, by: str, change: object, layout: str = "hf") -> Mutant:
    plugin = Plugin("mistral", weight_map=hooks.maps("mistral", change, layout))  # type: ignore[arg-type]
    return Mutant(name, plugin, by, native=layout == "mistral")


MUTANTS: tuple[Mutant, ...] = (
    # The config.
    Mutant(
        "config: coerces strings",
        Plugin("mistral", parse_config=hooks.parses(hooks.Coerces)),
        "test_config_rejects_mutations",
    ),
    Mutant(
        "config: a key nobody reads",
        Plugin("mistral", parse_config=hooks.parses(hooks.ReadsAnotherName)),
        "test_every_config_key_is_read",
    ),
    Mutant(
        "config: holds a function",
        Plugin("mistral", parse_config=hooks.parses(hooks.HoldsAFunction)),
        "test_config_can_be_copied_and_pickled",
    ),
    Mutant(
        "config: another default",
        Plugin("mistral", parse_config=hooks.parses(hooks.HasAnotherDefault)),
        "test_defaults_are_the_references",
    ),
    Mutant("config: rms_norm_eps ignored", Plugin("mistral", build_model=hooks.constant_norms), MATTERS),
    Mutant(
        "config: head_dim ignored",
        Plugin(
            "mistral",
            build_block=hooks.head_dim_of_its_own,
        ),
        MATTERS,
    ),
    _mistral("config: rope_theta ignored, another base", MATTERS, blocks.rope(theta=500_000.0)),
    _mixtral("config: num_experts_per_tok ignored", MATTERS, blocks.mixture(blocks.AlwaysTwo)),
    # Rotary positions.
    _mistral("rope: base doubled", LOGITS, blocks.rope(base=2.0)),
    _mistral("rope: interleaved instead of halves", LOGITS, blocks.rope(traditional=True)),
    _attention("rope: forgotten", "test_order_of_earlier_tokens_matters", blocks.NoRotation),
    _attention("rope: keys not rotated", "test_order_of_earlier_tokens_matters", blocks.KeysNotRotated),
    _attention("cache: positions start anew with each step", CACHED, blocks.AlwaysFromZero),
    _attention("cache: positions off by one", "test_prefill_equals_stepwise", blocks.OneTooFarWhenCached),
    _attention("batch: one row's position for all", BATCH, blocks.FirstRowsPosition),
    # Attention, window and cache.
    _attention("attention: no scale", LOGITS, blocks.NoScale),
    _attention("attention: no causal mask", "test_future_tokens_change_nothing", blocks.NoMask),
    _attention("attention: key heads tiled, not repeated", LOGITS, blocks.TiledHeads),
    _attention("cache: not advanced", CACHED, blocks.NoCache),
    _mistral("window: one too many", WINDOW, blocks.window(lambda size: size + 1)),
    _mistral("window: one too few", WINDOW, blocks.window(lambda size: size - 1)),
    Mutant(
        "window: one too many, cache and all",
        Plugin(
            "mistral",
            make_cache=hooks.wider_cache,
            build_block=blocks_with("mistral", blocks.window(lambda size: size + 1)),
        ),
        WINDOW,
    ),
    Mutant(
        "window: ignored",
        Plugin(
            "mistral", make_cache=hooks.full_cache, build_block=blocks_with("mistral", blocks.window(lambda _: None))
        ),
        MATTERS,
    ),
    Mutant(
        "cache: spec of the query's heads",
        Plugin("mistral", make_cache=hooks.cache_of_query_heads),
        "test_cache_is_what_its_spec_says",
    ),
    # The block.
    _block("block: norms after instead of before", LOGITS, blocks.PostNorm),
    _block("block: residual dropped", LOGITS, blocks.NoResidual),
    _block("block: attention and feed-forward in parallel", LOGITS, blocks.Parallel),
    _block("block: a norm skipped", GRADIENTS, blocks.SkipsANorm),
    _block("block: rows of the batch mixed", BATCH, blocks.SeesOtherRows),
    _block("block: remembers the call before", "test_a_call_leaves_no_trace", blocks.Remembers),
    _block("block: rounds to float16 within", "test_float32_is_not_rounded", blocks.RoundsWithin),
    _block("block: widens to float32", DTYPES, blocks.Widens),
    _attention("block: no gradient through attention", GRADIENTS, blocks.Frozen),
    _attention("block: asks for a number", "test_forward_can_be_traced", blocks.AsksForANumber),
    _mistral("mlp: gelu instead of silu", LOGITS, blocks.gelu),
    _mistral("norm: one epsilon a constant", EPSILON, blocks.constant_eps),
    # The weights.
    _map("map: a parameter forgotten", "test_weight_map_is_a_bijection", hooks.without_norm),
    _map("map: a name misspelt", LOGITS, hooks.misspelt),
    _map("map: up before gate", ORDER, hooks.up_before_gate),
    _map("map: values before keys", ORDER, hooks.values_before_keys),
    _map("map: w3 before w1", LOGITS, hooks.native_up_before_gate, "mistral"),
    _map("map: not permuted", LOGITS, hooks.not_permuted, "mistral"),
    _map("map: permuted by another number of heads", LOGITS, hooks.permuted_by_other_heads, "mistral"),
    _map("map: two norms exchanged", LOGITS, hooks.norms_exchanged),
    _map("map: layers upside down", LOGITS, hooks.layers_upside_down),
    Mutant(
        "map: experts swap gate and up",
        Plugin("mixtral", weight_map=hooks.maps("mixtral", hooks.experts_swap_gate_and_up)),
        LOGITS,
        "mixtral",
    ),
    Mutant(
        "map: experts upside down",
        Plugin("mixtral", weight_map=hooks.experts_upside_down(plugins.mixtral.weight_map)),
        ORDER,
        "mixtral",
    ),
    # The head.
    Mutant("head: tied by mistake", Plugin("mistral", build_model=hooks.tied, weight_map=hooks.tied_map), TIED),
    Mutant("head: there, and not used", Plugin("mistral", build_model=hooks.decoder(hooks.UsesTheEmbedding)), TIED),
    Mutant("head: final norm dropped", Plugin("mistral", build_model=hooks.decoder(hooks.NoFinalNorm)), GRADIENTS),
    # Experts.
    _mixtral("moe: softmax before top-k, not normalised", LOGITS, blocks.mixture(blocks.SoftmaxBeforeTopK)),
    _mixtral("moe: no softmax", LOGITS, blocks.mixture(blocks.NoSoftmax)),
    _mixtral("moe: the worst experts", LOGITS, blocks.mixture(blocks.WorstExperts)),
    _mixtral("moe: weights in another order than experts", LOGITS, blocks.mixture(blocks.WeightsInAnotherOrder)),
    _mixtral("moe: sorted tokens not put back", CACHED, blocks.experts),
    Mutant(
        "moe: the router is quantized",
        Plugin("mixtral", quantize_module=hooks.everything_is_quantized),
        "test_routers_stay_in_full_precision",
        "mixtral",
    ),
    # The contract.
    _mistral("contract: a hook in the forward pass", "test_no_hook_is_called_in_the_forward_pass", hooks.asks_a_hook),
    _mistral("contract: computes while it is built", "test_load_stays_within_memory", hooks.computes_early),
    Mutant(
        "contract: a kernel's source is wrong",
        Plugin("mistral"),
        "test_kernels_agree_with_their_references",
        around=hooks.wrong_swiglu,
    ),
)


def table(mutants: Iterable[Mutant] = MUTANTS) -> Iterable[str]:
    """A line for each mutant: the checks that catch it without a reference, or that none does."""
    with tempfile.TemporaryDirectory() as folder:
        native = write_native(REFERENCES["mistral"], Path(folder) / "native")
        for mutant in mutants:
            with mutant.around(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                alone = mutant.kit(native, reference=False)
                found = [name for name, _ in failures(alone, [c for c in CHECKS if c not in AGAINST_REFERENCE])]
                beside = [name for name, _ in failures(mutant.kit(native, reference=True), sorted(AGAINST_REFERENCE))]
            names = ", ".join(name.removeprefix("test_") for name in found) or "only with a reference"
            yield f"{mutant.name:48} {'reference' if beside else '-':10} {names}"


if __name__ == "__main__":
    for line in table():
        print(line)
