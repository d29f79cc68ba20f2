"""Compiling a model's kernels before its weights are read: once for all processes, and no error of it stops a load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import core
from core.kernels.cuda_code import Compiler, compiler
from core.kernels.cuda_code.mlx_folder import Folders
from core.kernels.cuda_code.nvrtc import Code
from core.kernels.cuda_code.store import CodeStore
from core.kernels.device import KernelDevice, use_device
from core.nn import Decoder
from tests.fixtures import STORIES

IDS = mx.array([[1, 2, 3]])


def build(**_description: Any) -> Any:
    raise AssertionError("a kernel was run")


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """A CUDA device that compiles, and runs nothing."""
    monkeypatch.setattr(compiler.nvrtc, "compile_kernel", lambda text, kernel, *_: Code(text.encode(), kernel))
    made = Compiler("sm_90a", (), CodeStore(tmp_path / "store", ("device",)), Folders([tmp_path / "ptx"]))
    with use_device(KernelDevice("Fake CUDA", "cuda", build, 9, made)):
        yield made


def logits(lm: core.LanguageModel) -> mx.array:
    with use_device(None):
        result = lm.model(IDS)
        mx.eval(result)
    return result


def test_what_a_model_needs_is_compiled_once_for_all_processes(compiling: Compiler) -> None:
    ordinary = logits(core.load(STORIES, tokenizer=False))
    assert any("swiglu" in module for module in compiling.prepared)
    assert compiling.failures == {}
    again = Compiler("sm_90a", (), compiling.store, Folders([]))
    with use_device(KernelDevice("Fake CUDA", "cuda", build, 9, again)):
        assert mx.array_equal(logits(core.load(STORIES, tokenizer=False)), ordinary).item()
    assert again.prepared == ()


def test_a_block_that_reads_values_still_loads(compiling: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = Decoder.hidden_states

    def reads(self: Decoder, tokens: mx.array, *arguments: Any) -> mx.array:
        assert tokens.max().item() < self.vocab_size
        return ordinary(self, tokens, *arguments)

    monkeypatch.setattr(Decoder, "hidden_states", reads)
    assert mx.all(mx.isfinite(logits(core.load(STORIES, tokenizer=False)))).item()
    assert "eval" in compiling.failures["ahead of use"]
    assert not list((compiling.store._folder or Path()).glob("*.passed")), "the next process tries again"


def test_a_load_that_fails_drops_what_is_queued(compiling: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[bool] = []
    monkeypatch.setattr(compiling, "cancel", lambda: cancelled.append(True))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        core.load(STORIES, tokenizer=False, progress=stop)
    assert cancelled == [True]


def test_what_modules_keep_of_the_zeros_is_forgotten(compiling: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = Decoder.head

    def keeps(self: Decoder, x: mx.array) -> mx.array:
        if not hasattr(self, "_kept"):
            self._kept = mx.sum(self.norm.weight)  # in the module's dictionary
            object.__setattr__(self, "_also_kept", (self._kept,))  # and beside it
        return ordinary(self, x + self._kept + 2 * self._also_kept[0])

    monkeypatch.setattr(Decoder, "head", keeps)
    with use_device(None):
        alone = logits(core.load(STORIES, tokenizer=False))
    assert mx.array_equal(logits(core.load(STORIES, tokenizer=False)), alone).item()
    assert compiling.prepared != ()
