"""Rule 3: who loads a type is decided by tiers, and by nothing else."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mlx.core as mx
import pytest

import core
from core.errors import PluginError, UnknownModelTypeError, UsageError
from core.registry import bind, choose, claims, status
from tests.registry.children import child
from tests.registry.conftest import Install
from tests.registry.plugin_source import plugin_source
from tests.registry.wheels import Distribution

Checkpoints = Callable[[str], Path]


def package(name: str, *types: str, **more: object) -> Distribution:
    """A distribution with one module that claims ``types``."""
    module = name.replace("-", "_")
    return Distribution(name, modules={f"{module}.py": plugin_source()}, claims=dict.fromkeys(types, module), **more)  # type: ignore[arg-type]


BUNDLED = "[core.bundled]\nbirch = bundled_birch\n"
FALLBACK = """
import sys
asked = []
def claims(model_type):
    asked.append(model_type)
    return model_type in ("cedar", "mistral", "birch")
"""


def status_of(model_type: str) -> dict[str, str]:
    found = claims()
    return {claim.value: status(claim, found) for claim in found if claim.model_type == model_type}


def test_a_third_party_loads_its_types_from_one_module(install: Install, third_party: Checkpoints) -> None:
    install(package("trees", "oak", "elm", "ash"))
    for model_type in ("oak", "elm", "ash"):
        lm = core.load(third_party(model_type), tokenizer=False)
        assert lm.config.model_type == model_type
        assert lm.report.plan.plugin == "trees (trees 1.0)"
        assert len(list(core.generate_tokens(lm.model, [1, 2], max_tokens=3))) == 3


def test_builtins_beat_third_parties_which_beat_bundled_families(install: Install) -> None:
    install(package("rival", "mistral", "birch"), Distribution("extras", entry_points=BUNDLED))
    assert choose("mistral").tier == "builtin"
    assert choose("birch").distribution == "rival"
    assert status_of("mistral")["rival"].startswith("shadowed by corelm ")
    assert status_of("birch") == {
        "rival": "active",
        "bundled_birch": "shadowed by rival 1.0 (entry point birch = rival)",
    }


def test_a_bundled_family_serves_where_nobody_else_does(install: Install, third_party: Checkpoints) -> None:
    install(Distribution("extras", modules={"bundled_birch.py": plugin_source()}, entry_points=BUNDLED))
    assert core.load(third_party("birch"), tokenizer=False).report.claim.tier == "bundled"


@pytest.mark.parametrize("swapped", [False, True])
def test_order_on_the_path_decides_nothing(tmp_path: Path, third_party: Checkpoints, swapped: bool) -> None:
    sites = [package(name, "oak").install(tmp_path / name) for name in ("acorn", "bark")]
    sites.append(package("solo", "elm").install(tmp_path / "solo"))
    facts = child(
        """
        import sys, core
        from core.errors import PluginError
        oak, elm = sys.argv[1:]
        try:
            core.load(oak, tokenizer=False)
        except PluginError as error:
            message = str(error)
        claim = core.load(elm, tokenizer=False).report.claim
        report(message=message, elm=claim.distribution, imported=[n for n in ("acorn", "bark") if n in sys.modules])
        """,
        third_party("oak"),
        third_party("elm"),
        path=sites[::-1] if swapped else sites,
    )
    assert "is claimed by acorn 1.0 (entry point oak = acorn) and bark 1.0 (entry point oak = bark)" in facts["message"]
    assert "plugin='acorn'" in facts["message"]
    assert facts["elm"] == "solo"
    assert facts["imported"] == []


def test_every_order_on_the_path_gives_the_same_answers(
    tmp_path: Path, third_party: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = (package("acorn", "oak", "mistral"), package("bark", "oak", "elm"), package("cone", "oak"))
    sites = [str(one.install(tmp_path / one.name)) for one in packages]
    before, path = list(sys.path), third_party("oak")
    answers = set()
    for order in itertools.permutations(sites):
        for split in range(len(sites) + 1):  # so many of them before everything else, the others behind it
            monkeypatch.setattr(sys, "path", [*order[:split], *before, *order[split:]])
            with pytest.raises(PluginError) as caught:
                core.load(path, tokenizer=False)
            chosen = choose("oak", "cone"), choose("elm"), choose("mistral")
            answers.add((str(caught.value), *((str(claim), claim.tier) for claim in chosen), str(claims())))
    assert len(answers) == 1


def test_a_conflict_is_resolved_by_choosing_or_by_blocking(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(package("acorn", "oak"), package("bark", "oak"))
    assert status_of("oak")["acorn"] == "in conflict with bark 1.0 (entry point oak = bark)"
    assert choose("oak", "bark").value == "bark"
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", "bark")
    assert choose("oak").value == "acorn"
    assert status_of("oak") == {"acorn": "active", "bark": "blocked by CORE_BLOCK_PLUGINS"}


def test_one_distribution_with_two_claims_to_a_type_is_in_conflict_with_itself(install: Install) -> None:
    install(
        Distribution(
            "twice", claims={"oak": "twice.a"}, entry_points="[other]\nx = y\n[core.architectures]\noak = twice.b\n"
        )
    )
    with pytest.raises(PluginError, match=r"is claimed by twice 1\.0 .*twice\.a\) and twice 1\.0 .*twice\.b"):
        choose("oak")
    assert choose("oak", "twice.b").value == "twice.b"


def test_the_first_copy_of_a_distribution_counts_as_it_does_for_imports(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Distribution("forest", "2.0", claims={"oak": "forest"}), Distribution("park", "2.0"))
    old = [Distribution(name, "1.0", claims={"oak": name, "elm": name}) for name in ("forest", "park")]
    monkeypatch.setattr(sys, "path", [*sys.path, *(str(one.install(tmp_path / "behind" / one.name)) for one in old)])
    assert choose("oak").version == "2.0"
    with pytest.raises(UnknownModelTypeError):
        choose("elm")


class Plugin:
    """The hooks as methods of an object; the module's functions do the work."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @core.hookimpl
    def parse_config(self, config: dict[str, object]) -> object:
        return self._module.parse_config(config)

    @core.hookimpl
    def weight_map(self, config: object, layout: str) -> object:
        return self._module.weight_map(config, layout)

    @core.hookimpl
    def build_block(self, config: object) -> object:
        return self._module.build_block(config)

    @core.hookimpl
    def make_cache(self) -> object:
        return core.CacheSpec.state({})


def test_explicit_beats_registered_beats_all(
    install: Install, third_party: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = "import types, spare\nnest = types.SimpleNamespace(plugin=spare)\n"
    install(
        package("acorn", "oak"),
        package("spare"),
        Distribution("quercus", modules={"quercus.py": nested}, claims={"oak": "quercus:nest.plugin", "elm": "acorn"}),
    )
    import acorn  # type: ignore[import-not-found]
    import spare  # type: ignore[import-not-found]

    path = third_party("oak")

    def who(plugin: object = None) -> str:
        report = core.load(path, tokenizer=False, plugin=plugin).report
        return f"{report.claim.tier} {report.claim.value}"

    with pytest.raises(PluginError, match=r"acorn 1\.0 .* and quercus 1\.0"):
        who()
    core.register("oak", spare)
    assert who() == "registered spare"
    assert who(acorn) == "explicit acorn"
    assert who("Quercus") == "installed quercus:nest.plugin"  # a distribution's name, compared as pip does
    assert who("spare") == "explicit spare"  # a dotted path
    assert who("quercus:nest.plugin") == "explicit quercus:nest.plugin"
    assert who(Plugin(spare)) == "explicit Plugin"
    monkeypatch.setenv("CORE_PLUGIN", "spare")
    assert who() == "explicit spare"
    monkeypatch.setenv("CORE_PLUGIN", "nowhere, elm=x, oak = acorn.py, oak=acorn")
    with pytest.raises(PluginError, match=r"acorn\.py .*cannot be imported"):
        who()
    assert who("acorn") == "installed acorn"
    monkeypatch.delenv("CORE_PLUGIN")
    core.unregister("oak")
    with pytest.raises(PluginError, match="is claimed by"):
        who()
    assert core.load(path, tokenizer=False, plugin=acorn).report.shadowed == (
        "acorn 1.0 (entry point oak = acorn): shadowed by acorn (explicit)",
        "quercus 1.0 (entry point oak = quercus:nest.plugin): shadowed by acorn (explicit)",
    )
    # Chosen by name, it is still one of two that claim the type.
    assert core.load(path, tokenizer=False, plugin="acorn").report.shadowed == (
        "quercus 1.0 (entry point oak = quercus:nest.plugin): in conflict with acorn 1.0 (entry point oak = acorn)",
    )


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            "no.such.module",
            "plugin no.such.module (explicit) cannot be imported: ModuleNotFoundError: No module named 'no'",
        ),
        (
            "not a path",
            "cannot be imported: ValueError: 'not a path' is neither a module's dotted path",
        ),
        ("", "plugin  (explicit) cannot be imported"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("json", "lacks the required hooks parse_config, weight_map, build_block (found no function marked"),
        ("pluggy", "lacks the required hooks"),
        (
            "corelm",
            "distribution 'corelm' does not claim model_type 'oak' (found claims of mistral, m",
        ),
        (Plugin, "is a class\n  Give an instance: Plugin()."),
        (3, "plugin int (explicit) lacks the required hooks"),
    ],
)
def test_what_is_no_plugin_is_refused_in_words(plugin: object, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        bind(choose("oak", plugin))
    assert message in str(caught.value)


def test_register_and_unregister(third_party: Checkpoints, install: Install) -> None:
    install(package("spare"))
    path = third_party("oak")
    core.register("oak", "spare")
    lm = core.load(path, tokenizer=False)
    with pytest.raises(UsageError, match=r"already registered, by spare\n  core\.unregister\('oak'\) first"):
        core.register("oak", SimpleNamespace())
    core.unregister("oak")
    assert lm.model(mx.array([[1, 2]])).shape == (1, 2, 32)
    with pytest.raises(UnknownModelTypeError):
        core.load(path, tokenizer=False)
    with pytest.raises(UsageError, match="'oak' is not registered"):
        core.unregister("oak")
    for bad in (("", object()), (None, object()), ("oak", None)):
        with pytest.raises(UsageError):
            core.register(*bad)


def test_fallbacks_are_asked_only_when_nobody_claims_the_type(
    install: Install, third_party: Checkpoints, mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"net.py": plugin_source(FALLBACK), "raises.py": "def claims(model_type): raise OSError('unwell')\n"}
    modules |= {"leaves.py": "def claims(model_type): raise SystemExit(3)\n", "broken.py": "import nothing_there\n"}
    names = ("net", "raises", "leaves", "broken")
    install(
        *(Distribution(n, modules={f"{n}.py": modules[f"{n}.py"]}, fallbacks={"any": n}) for n in names),
        package("acorn", "birch"),
    )
    core.load(mistral, tokenizer=False)
    core.load(third_party("birch"), tokenizer=False)
    assert not set(names) & set(sys.modules)
    claim = core.load(third_party("cedar"), tokenizer=False).report.claim
    assert (claim.tier, claim.distribution, claim.model_type) == ("fallback", "net", "cedar")
    assert sys.modules["net"].asked == ["cedar"]
    with pytest.raises(UnknownModelTypeError) as caught:
        core.load(third_party("pine"), tokenizer=False)
    for words in (
        "fallback raises 1.0 (entry point * = raises) failed when asked: OSError: unwell.",
        "fallback leaves 1.0 (entry point * = leaves) failed when asked: SystemExit: 3.",
        "plugin broken 1.0 (entry point * = broken) cannot be imported: ModuleNotFoundError: No module named",
    ):
        assert words in str(caught.value)
    assert choose("pine", "net").tier == "fallback"  # who is named need not be asked
    monkeypatch.setenv("CORE_BLOCK_PLUGINS", "net")
    with pytest.raises(UnknownModelTypeError):
        choose("cedar")


def test_two_willing_fallbacks_are_a_conflict(install: Install) -> None:
    install(*(Distribution(n, modules={f"{n}.py": FALLBACK}, fallbacks={"any": n}) for n in ("net", "web")))
    with pytest.raises(PluginError, match=r"'cedar' is claimed by net 1\.0 .* and web 1\.0"):
        choose("cedar")
