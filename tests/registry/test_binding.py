"""Rules 2, 6 and 7: one plugin answers for one model, before the forward pass; a checkpoint's code never runs."""

from __future__ import annotations

import json
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pluggy
import pytest

import core
from core.registry import bind, choose
from tests.registry import checkpoints
from tests.registry.conftest import Install
from tests.registry.plugin_source import plugin_source
from tests.registry.wheels import Distribution

TOKENS = mx.array([[1, 2, 3]])


@pytest.fixture
def managers(monkeypatch: pytest.MonkeyPatch) -> list[pluggy.PluginManager]:
    """Every plugin manager that is made while the test runs."""
    made: list[pluggy.PluginManager] = []
    init = pluggy.PluginManager.__init__

    def remember(self: pluggy.PluginManager, project_name: str) -> None:
        init(self, project_name)
        made.append(self)

    monkeypatch.setattr(pluggy.PluginManager, "__init__", remember)
    return made


def test_a_plugin_that_is_loaded_later_never_answers_for_an_earlier_model(
    install: Install, third_party: Callable[[str], Path]
) -> None:
    marks = "".join(
        f"@hookimpl\ndef {hook}(): asked.append('{hook}')\n" for hook in ("quantize_module", "model_loaded")
    )
    names = ("early", "later")
    for name in names:
        source = plugin_source("asked = []\n", marks=marks)
        install(Distribution(name, modules={f"{name}.py": source}, claims={"oak": name}))
    path = third_party("oak")
    early = bind(choose("oak", "early"))
    config = early.parse_config(json.loads((path / "config.json").read_text()))
    later = core.load(path, tokenizer=False, plugin="later")
    asked = sys.modules["later"].asked
    assert asked == ["model_loaded"]
    block = early.build_block(config, 0)
    assert type(block).__module__ == "early"
    assert type(early.make_cache(config, 0)).__name__ == "CacheSpec"
    assert early.quantize_module(config, "layers.0.proj", block.proj) is True
    early.model_loaded(block, None)
    assert asked == ["model_loaded"]
    assert sys.modules["early"].asked == ["quantize_module", "model_loaded"]
    assert later.report.claim.distribution == "later"
    assert [name for name, _ in early.manager.list_name_plugin()] == ["early", "core.registry.defaults"]


def test_a_plugin_works_on_a_copy_of_the_config(install: Install) -> None:
    greedy = (
        "@hookimpl\ndef parse_config(config):\n    config.pop('rings').clear()\n    return Config.from_dict(config)\n"
    )
    install(Distribution("oak", modules={"oak.py": plugin_source(parse_config=greedy)}, claims={"oak": "oak"}))
    config = {"model_type": "oak", "hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 8, "rings": {"count": 80}}
    assert core.build(config).config.model_type == "oak"
    assert config["rings"] == {"count": 80}


@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
def test_no_hook_is_called_in_the_forward_pass(
    architecture: str, request: pytest.FixtureRequest, managers: list[pluggy.PluginManager]
) -> None:
    lm = core.load(request.getfixturevalue(architecture), tokenizer=False)
    (manager,) = managers
    called: list[str] = []
    undo = manager.add_hookcall_monitoring(
        lambda hook, implementations, arguments: called.append(hook),
        lambda outcome, hook, implementations, arguments: None,
    )
    lm.model(TOKENS)
    cache = lm.make_cache()
    lm.model(TOKENS, cache=cache)
    list(core.generate_tokens(lm.model, [1, 2], max_tokens=4, cache=cache))
    assert lm.generate([1, 2], max_tokens=2).token_ids
    assert called == []
    assert managers == [manager]
    manager.hook.make_cache(config=lm.config, index=0)
    assert called == ["make_cache"]  # the monitor does see calls
    undo()


@pytest.mark.parametrize("order", [("mistral", "mixtral"), ("mixtral", "mistral")])
def test_two_threads_load_two_types_at_once(order: tuple[str, str], request: pytest.FixtureRequest) -> None:
    """Each thread's models work in it and, once loaded, in any other: MLX gives every thread streams of its own."""
    paths = [request.getfixturevalue(name) for name in order]
    expected = [core.load(path, tokenizer=False).model(TOKENS) for path in paths]
    mx.eval(expected)
    start = threading.Barrier(2)
    loaded: list[Any] = [None, None]
    inside: list[Any] = [None, None]
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            start.wait(timeout=60)
            loaded[index] = core.load(paths[index], tokenizer=False)
            inside[index] = loaded[index].model(TOKENS)
            mx.eval(inside[index])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for index in range(2):
        assert mx.array_equal(inside[index], expected[index])
        assert mx.array_equal(loaded[index].model(TOKENS), expected[index])
        assert list(core.generate_tokens(loaded[index].model, [1, 2], max_tokens=2))


def test_arrays_that_a_block_computes_for_itself_outlive_the_thread_that_loaded_it(
    install: Install, third_party: Callable[[str], Path]
) -> None:
    table = """
    class Block(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.proj = nn.Linear(size, size, bias=False)
            self._angles = 1.0 / (10.0 ** mx.arange(size))

        def __call__(self, x, step):
            return x + self.proj(x * self._angles)
    """
    source = plugin_source(prelude="import mlx.core as mx", block=textwrap.dedent(table))
    install(Distribution("oak", modules={"oak.py": source}, claims={"oak": "oak"}))
    path = third_party("oak")
    loaded: list[core.LanguageModel] = []
    thread = threading.Thread(target=lambda: loaded.append(core.load(path, tokenizer=False)))
    thread.start()
    thread.join()
    assert mx.array_equal(loaded[0].model(TOKENS), core.load(path, tokenizer=False).model(TOKENS))


def test_a_plugin_may_load_another_model(install: Install, third_party: Callable[[str], Path], mistral: Path) -> None:
    draft = "@hookimpl\ndef build_block(config):\n    import core\n    core.load(core.small, tokenizer=False)\n"
    source = plugin_source(build_block=draft + "    return Block(config.hidden_size)\n")
    install(Distribution("oak", modules={"oak.py": source}, claims={"oak": "oak"}))
    core.small = mistral
    try:
        loading = threading.Thread(
            target=core.load, args=(third_party("oak"),), kwargs={"tokenizer": False}, daemon=True
        )
        loading.start()
        loading.join(timeout=60)
        assert not loading.is_alive()
    finally:
        del core.small


def test_python_files_in_a_checkpoint_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    path = checkpoints.mistral(tmp_path / "checkpoint", auto_map=auto_map, trust_remote_code=True)
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
    names = ("modeling_x", "configuration_x", "mistral", "tokenization_x", "__init__", "sitecustomize", "conftest")
    for name in names:
        (path / f"{name}.py").write_text(code)
    monkeypatch.chdir(path)
    lm = core.load(path, tokenizer=False)
    assert lm.model(TOKENS).shape == (1, 3, checkpoints.VOCAB)
    assert lm.config.unread_keys(json.loads((path / "config.json").read_text())) == ["auto_map", "trust_remote_code"]
    assert not ran.exists()
    assert not [module for module in sys.modules.values() if str(getattr(module, "__file__", "")).startswith(str(path))]
