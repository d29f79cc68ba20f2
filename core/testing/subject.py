"""``Subject``: the architecture under test, with its plugin and config, a random model, and checkpoints made from
it."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import core
from core.config import ModelConfig
from core.language_model import LanguageModel
from core.layouts import LAYOUTS
from core.loading.configure import configured
from core.loading.skeleton import skeleton
from core.nn import Cache, CacheSpec, Decoder
from core.registry import BoundPlugin
from core.testing.weights import randomise
from core.weights import WeightMap, checkpoint_tensors
from core.weights.tree import all_arrays, replace


class Subject:
    """One architecture in one configuration.

    Args:
        raw: as parsed from a ``config.json``.
        plugin: as for ``core.load``.
        initialise: gives a model's parameters their values.

    Attributes:
        bound, config: the plugin's hooks, and its config object for ``raw``.
        model: in float32.
        specs: each block's ``CacheSpec``.
    """

    def __init__(
        self, raw: Mapping[str, Any], plugin: Any = None, initialise: Callable[[nn.Module], None] = randomise
    ) -> None:
        self.raw = dict(raw)
        self.plugin = plugin
        self._initialise = initialise
        self.bound: BoundPlugin
        self.config: ModelConfig
        self.bound, self.config = configured(dict(raw), "config", plugin)
        self.model: Decoder
        self.specs: tuple[CacheSpec, ...]
        self.model, self.specs = skeleton(self.bound, self.config)
        initialise(self.model)

    def like(self, changes: Mapping[str, Any]) -> Subject:
        """The same architecture with some keys of its config changed.

        Raises:
            CoreError: the plugin refuses them.
        """
        return Subject({**self.raw, **changes}, self.plugin, self._initialise)

    @cached_property
    def maps(self) -> dict[str, WeightMap]:
        """Layout → weight map, for the layouts that the architecture has."""
        found = {layout: self.bound.weight_map(self.config, layout) for layout in LAYOUTS}
        return {layout: one for layout, one in found.items() if one is not None}

    @property
    def first_layout(self) -> str:
        """The first of ``maps``, which is ``hf`` if there is one."""
        if not self.maps:
            raise AssertionError(f"weight_map gives no map for any of the layouts {', '.join(LAYOUTS)}")
        return next(iter(self.maps))

    @cached_property
    def arrays(self) -> dict[str, mx.array]:
        """The model's parameters by path."""
        return all_arrays(self.model)

    @cached_property
    def directory(self) -> Path:
        """A temporary directory that lives as long as this object."""
        path = Path(tempfile.mkdtemp(prefix="core-testing-"))
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return path

    def tensors(self, layout: str, dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
        """The model as a checkpoint's tensors, by the layout's map run backwards."""
        found = checkpoint_tensors(self.model, self.maps[layout])
        return {name: mx.contiguous(array.astype(dtype)) for name, array in found.items()}

    def checkpoint(self, layout: str, dtype: mx.Dtype = mx.float32) -> Path:
        """A directory with the model in one layout."""
        path = self.directory / f"{layout}-{str(dtype).rpartition('.')[2]}"
        if not path.exists():
            path.mkdir()
            mx.save_safetensors(str(path / "model.safetensors"), self.tensors(layout, dtype), {"format": "pt"})
            self.write_config(path)
        return path

    def write_config(self, directory: Path) -> None:
        """Writes ``config.json``."""
        (directory / "config.json").write_text(json.dumps(self.raw))

    def load(self, path: Path, **options: Any) -> LanguageModel:
        """``core.load`` with this plugin and no tokenizer."""
        return core.load(path, plugin=self.plugin, tokenizer=False, **options)

    def plan(self, path: Path) -> core.Plan:
        """``core.plan`` with this plugin."""
        return core.plan(path, plugin=self.plugin)

    def adopt(self, other: Subject) -> None:
        """Copies another subject's parameters, which have the same paths and shapes."""
        for path, array in other.arrays.items():
            replace(self.model, path, array)
        self.__dict__.pop("arrays", None)

    def tokens(self, length: int, seed: int = 0) -> mx.array:
        """Random ids, ``[1, length]``."""
        return mx.random.randint(0, self.config.vocab_size, (1, length), key=mx.random.key(1000 + seed))

    def logits(self, tokens: mx.array, cache: Cache | None = None, lengths: Sequence[int] | None = None) -> mx.array:
        """The model's logits, evaluated."""
        found = self.model(tokens, cache=cache, lengths=lengths)
        mx.eval(found)
        return found

    def chunked(self, tokens: mx.array, chunks: Sequence[int], cache: Cache | None = None) -> mx.array:
        """The logits of one row whose tokens go through a cache in chunks."""
        cache = self.model.make_cache() if cache is None else cache
        pieces, start = [], 0
        for chunk in chunks:
            pieces.append(self.logits(tokens[:, start : start + chunk], cache))
            start += chunk
        return mx.concatenate(pieces, axis=1)

    @cached_property
    def reach(self) -> int | None:
        """How many tokens back the last logits can see through all blocks, without their own; None: all of them."""
        windows = [spec.window for spec in self.specs]
        return sum(window - 1 for window in windows if window is not None) if None not in windows else None

    @cached_property
    def length(self) -> int:
        """Tokens of a prompt that is longer than all windows reach."""
        return 40 if self.reach is None else max(40, self.reach + 12)
