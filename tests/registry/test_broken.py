"""Rule 4: a broken plugin hurts only the load that needs it, whose error names the package and keeps the cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import core
from core.errors import ConfigError, CoreError, PluginError
from core.registry import bind, choose
from tests.registry.conftest import Install
from tests.registry.plugin_source import plugin_source
from tests.registry.wheels import Distribution

NAMED = "plugin broken-oak 1.0 (entry point oak = broken_oak)"
# Every hook that a load calls; quantize_module is for quantizing a model that is loaded.
CALLED = ("parse_config", "weight_map", "build_block", "build_model", "make_cache", "model_loaded")


@pytest.fixture
def failure(install: Install, third_party: Callable[[str], Path], mistral: Path) -> Callable[..., CoreError]:
    """The error that loading with a plugin of this source ends in; the built-in ``mistral`` loads all the same."""

    def fail(source: str, expected: type[CoreError] = PluginError) -> CoreError:
        install(Distribution("broken-oak", modules={"broken_oak.py": source}, claims={"oak": "broken_oak"}))
        with pytest.raises(expected) as caught:
            core.load(third_party("oak"), tokenizer=False)
        assert core.load(mistral, tokenizer=False).model(mx.array([[1, 2]])).shape == (1, 2, 32)
        return caught.value

    return fail


Failure = Callable[..., CoreError]


@pytest.mark.parametrize(
    ("source", "cause", "message"),
    [
        (
            "def (",
            SyntaxError,
            "broken_oak.py:1: plugin broken-oak 1.0 (entry point oak = broken_oak) cannot be imported",
        ),
        ("import no_such_package", ModuleNotFoundError, "No module named 'no_such_package'"),
        ("import sys; sys.exit(3)", SystemExit, "cannot be imported: SystemExit: 3"),
        ("raise BaseException('of its own')", BaseException, "cannot be imported: BaseException: of its own"),
        ("1 / 0", ZeroDivisionError, "ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", ValueError, "ValueError: one\n  Repair or uninstall it"),
        ("def __getattr__(name): raise OSError('shy')\n__dir__ = lambda: ['x']", OSError, "breaks the contract: shy"),
    ],
)
def test_what_cannot_be_imported(failure: Failure, source: str, cause: type[BaseException], message: str) -> None:
    error = failure(source)
    assert NAMED in str(error)
    assert message in str(error)
    assert type(error.__cause__) is cause


def test_ctrl_c_while_a_plugin_is_imported_or_asked_stays_ctrl_c(install: Install, tmp_path: Path) -> None:
    late = plugin_source(parse_config="@hookimpl\ndef parse_config(config): raise KeyboardInterrupt\n")
    modules = {"early.py": "raise KeyboardInterrupt", "late.py": late}
    install(Distribution("stopped", modules=modules, claims={"oak": "early", "elm": "late"}))
    with pytest.raises(KeyboardInterrupt):
        bind(choose("oak"))
    bound = bind(choose("elm"))
    with pytest.raises(KeyboardInterrupt):
        bound.parse_config({})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"build_block": "@hookimpl\ndef build_blok(config): ...\n"},
            f"{NAMED} marks 'build_blok' as a hook, and there is no such hook (expected parse_config, weight_map, "
            "build_block, build_model, make_cache, quantize_module, model_loaded)\n  Did you mean 'build_block'?",
        ),
        (
            {"build_block": "@hookimpl\ndef build_block(config, depth): ...\n"},
            f"{NAMED} breaks the contract: Plugin 'broken_oak' for hook 'build_block' hookimpl definition: "
            "build_block(config, depth) Argument(s) {'depth'} are declared in the hookimpl but can not be found in",
        ),
        (
            {"build_block": ""},
            f"{NAMED} lacks the required hook build_block (found make_cache, parse_config, weight_map)",
        ),
        ({"build_block": "", "weight_map": ""}, f"{NAMED} lacks the required hooks weight_map, build_block"),
        (
            {"make_cache": "def make_cache(config): ...\n"},
            f"{NAMED} defines make_cache without marking it as a hook\n  Put @core.hookimpl above it",
        ),
        (
            {"build_block": "@hookimpl(wrapper=True)\ndef build_block():\n    return (yield)\n"},
            f"{NAMED} lacks the required hook build_block",
        ),
        (
            {"build_block": "@hookimpl(wrapper=True)\ndef build_block(): return 1\n"},
            "lacks the required hook build_block",
        ),
        (
            {"extra": "@hookimpl(wrapper=True)\ndef model_loaded(): return 1\n"},
            f"{NAMED} breaks the contract: Plugin 'broken_oak' for hook 'model_loaded'",
        ),
    ],
)
def test_what_breaks_the_contract(failure: Failure, changed: dict[str, str], message: str) -> None:
    assert message in str(failure(plugin_source(**changed)))


def test_a_function_imported_from_elsewhere_is_no_forgotten_hook(
    install: Install, third_party: Callable[[str], Path]
) -> None:
    trunk = Distribution("trunk", modules={"trunk.py": "def make_cache(): ...\ndef build_model(): ...\n"})
    source = plugin_source(
        "from trunk import build_model",
        build_block="@hookimpl(specname='build_block')\ndef _build(config): return Block(config.hidden_size)\n",
        helper="def build_block(): 'A helper beside the hook of that name.'\n",
        later="@hookimpl(optionalhook=True)\ndef hook_of_a_later_core(whatever): ...\n",
    )
    install(trunk, Distribution("fine-oak", modules={"fine_oak.py": source}, claims={"oak": "fine_oak"}))
    assert core.load(third_party("oak"), tokenizer=False).report.claim.distribution == "fine-oak"


@pytest.mark.parametrize("hook", CALLED)
@pytest.mark.parametrize("error", ["RuntimeError('sap')", "SystemExit('sap')", "BaseException('sap')"])
def test_a_hook_that_raises(failure: Failure, hook: str, error: str) -> None:
    caught = failure(plugin_source(**{hook: f"@hookimpl\ndef {hook}(): raise {error}\n"}))
    name = error.partition("(")[0]
    assert f"{NAMED} failed in its hook {hook}: {name}: sap\n  This is a fault of the plugin" in str(caught)
    assert type(caught.__cause__).__name__ == name


@pytest.mark.parametrize(
    ("hook", "answer", "expected", "found"),
    [
        ("parse_config", "{}", "core.config.base.ModelConfig", "dict"),
        ("parse_config", "None", "core.config.base.ModelConfig", "NoneType"),
        ("weight_map", "{}", "core.weights.rules.WeightMap", "dict"),
        ("build_block", "None", "mlx.nn.layers.base.Module", "NoneType"),
        ("build_model", "nn.Linear(2, 2)", "core.nn.decoder.Decoder", "Linear"),
        ("make_cache", "'full'", "core.nn.spec.CacheSpec", "str"),
    ],
)
def test_a_hook_that_answers_with_the_wrong_thing(
    failure: Failure, hook: str, answer: str, expected: str, found: str
) -> None:
    caught = failure(plugin_source(**{hook: f"@hookimpl\ndef {hook}(): return {answer}\n"}))
    assert f"{NAMED} returned a wrong value from its hook {hook} (expected {expected}, found {found})" in str(caught)


def test_quantize_module_answers_yes_or_no(install: Install) -> None:
    source = plugin_source(
        quantize_module="@hookimpl\ndef quantize_module(path): return {'a': True}.get(path, 'maybe')\n"
    )
    install(Distribution("broken-oak", modules={"broken_oak.py": source}, claims={"oak": "broken_oak"}))
    bound: Any = bind(choose("oak"))
    assert bound.quantize_module(None, "a", None) is True
    with pytest.raises(PluginError, match=re.escape("hook quantize_module (expected bool, found str)")):
        bound.quantize_module(None, "b", None)


def test_a_plugin_may_refuse_a_checkpoint_in_its_own_words(failure: Failure) -> None:
    refusal = "@hookimpl\ndef parse_config(config): raise ConfigError('oaks have rings', hint='Count them.')\n"
    caught = failure(plugin_source("from core.errors import ConfigError", parse_config=refusal), ConfigError)
    assert re.fullmatch(r".*config\.json: oaks have rings\n  Count them\.", str(caught))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"make_cache": ""},
            "hook make_cache: Config has no 'num_key_value_heads', which core's default make_cache reads",
        ),
        (
            {"weight_map": "@hookimpl\ndef weight_map(): return WeightMap({'a.{x}': 'b.{x}'})\n"},
            "hook weight_map: the weight map uses the placeholder {x} without a range",
        ),
    ],
)
def test_what_core_finds_wrong_in_a_plugins_answers_names_the_plugin(
    failure: Failure, changed: dict[str, str], message: str
) -> None:
    assert f"{NAMED}, {message}" in str(failure(plugin_source(**changed)))


def test_wrappers_and_hooks_marked_last_come_before_cores_own_answers(install: Install) -> None:
    source = plugin_source(
        make_cache="@hookimpl(trylast=True)\ndef make_cache(): return CacheSpec.full(7, 3)\n",
        wrapper="@hookimpl(wrapper=True)\ndef quantize_module(path):\n    return (yield) and path != 'gate'\n",
    )
    install(Distribution("oak", modules={"oak.py": source}, claims={"oak": "oak"}))
    bound: Any = bind(choose("oak"))
    assert bound.make_cache(None, 0) == core.CacheSpec.full(7, 3)
    linear = nn.Linear(32, 32)
    assert [bound.quantize_module(None, path, linear) for path in ("proj", "gate")] == [True, False]
