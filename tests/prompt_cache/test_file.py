"""A cache in a file goes on as if it had never been away, or is refused with one error that says why."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import core
from core.errors import CacheError, SaveError

from . import kinds
from .kinds import ATOL, KINDS, MISTRAL, empty, feed, model, processed

PROMPT = [int(x) for x in np.random.default_rng(1).integers(0, 64, 50)]


def saved(path: Path, kind: str, ids: list[int] = PROMPT) -> Path:
    place = path / "prompt.safetensors"
    core.save_cache(place, processed(kind, ids, chunk=20), model(kind), ids)
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_goes_on_with_the_same_logits(tmp_path: Path, kind: str) -> None:
    cache = processed(kind, PROMPT, chunk=20)
    place = tmp_path / "prompt.cache"
    core.save_cache(place, cache, model(kind), [*PROMPT, 9])
    loaded, ids = core.load_cache(place, model(kind))
    place.unlink()
    assert (ids, loaded.length, loaded.settings) == (PROMPT, len(PROMPT), cache.settings)
    for probe in ([4, 8, 15], [16], [23], list(range(40)), [42]):
        one, other = feed(kind, loaded, probe), feed(kind, cache, probe)
        np.testing.assert_allclose(one, other, atol=ATOL, rtol=0)  # buffers of other strides may round otherwise


def test_the_file_is_plain_safetensors_with_the_slots_that_are_filled(tmp_path: Path) -> None:
    place = saved(tmp_path, "full")
    with safe_open(place, "np") as file:
        assert sorted(file.keys()) == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "ids"]
        assert file.get_tensor("blocks.0.0").shape == (1, 1, len(PROMPT), 32)
        assert file.get_tensor("ids").tolist() == PROMPT
    assert list(tmp_path.iterdir()) == [place]


def test_half_precision_survives(tmp_path: Path) -> None:
    built = core.build(MISTRAL | {"sliding_window": None}).model
    built.set_dtype(mx.bfloat16)
    cache = built.make_cache()
    built(mx.array([PROMPT]), cache)
    core.save_cache(tmp_path / "c", cache, built, PROMPT)
    loaded, _ = core.load_cache(tmp_path / "c", built)
    assert {array.dtype for array in loaded.arrays()} == {mx.bfloat16}
    assert mx.array_equal(built(mx.array([[5]]), loaded), built(mx.array([[5]]), cache))


def test_a_cache_that_was_rewound_or_loaded_is_saved_as_it_is(tmp_path: Path) -> None:
    cache = processed("window", PROMPT)
    cache.rewind(3)
    core.save_cache(tmp_path / "c", cache, model("window"), PROMPT)
    loaded, ids = core.load_cache(tmp_path / "c", model("window"))
    assert ids == PROMPT[:-3]
    core.save_cache(tmp_path / "c", loaded, model("window"), ids)
    loaded, _ = core.load_cache(tmp_path / "c", model("window"))
    np.testing.assert_array_equal(feed("window", loaded, [1, 2]), feed("window", cache, [1, 2]))


@pytest.mark.parametrize(
    "other",
    [
        {"rope_theta": 5e5},
        {"rms_norm_eps": 1e-3},
        {"sliding_window": 9},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 2},
    ],
    ids=str,
)
def test_another_model_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    place = saved(tmp_path, "window")
    mx.random.seed(5)
    built = core.build(MISTRAL | {"sliding_window": 8} | other).model
    with pytest.raises(CacheError, match=r"prompt.safetensors: was saved for another model: weights differ"):
        core.load_cache(place, built)


def test_other_weights_are_refused_and_equal_ones_are_not(tmp_path: Path) -> None:
    place = saved(tmp_path, "window")
    with pytest.raises(CacheError, match="another model: weights differ"):
        core.load_cache(place, model("window", seed=6))
    mx.random.seed(5)
    twin = core.build(MISTRAL | {"sliding_window": 8}).model
    assert core.load_cache(place, twin)[1] == PROMPT
    twin.norm.weight = twin.norm.weight + 1e-3
    with pytest.raises(CacheError, match="another model: weights differ"):
        core.load_cache(place, twin)


@pytest.fixture(scope="module")
def demo() -> core.LanguageModel:
    return core.load("demo:mistral")


def test_a_loaded_model_with_its_tokenizer(tmp_path: Path, demo: core.LanguageModel) -> None:
    cache, ids = demo.make_cache(kv_bits=8, kv_group_size=32), demo.encode("Once upon a time")
    demo.model(mx.array([ids]), cache)
    core.save_cache(tmp_path / "c", cache, demo, ids)
    for same in (demo, demo.model, core.load("demo:mistral", tokenizer=False)):
        loaded, held = core.load_cache(tmp_path / "c", same)
        assert (held, loaded.settings.kv_bits) == (ids, 8)


def test_another_tokenizer_is_refused(tmp_path: Path, demo: core.LanguageModel) -> None:
    class Shifted:
        vocab_size, bos_id = demo.tokenizer.vocab_size, demo.tokenizer.bos_id

        def encode(self, text: str) -> list[int]:
            return demo.tokenizer.encode(text)

        def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
            return demo.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens).upper()

    other = core.LanguageModel(demo.model, demo.config, Shifted(), demo.report)  # type: ignore[arg-type]
    cache = demo.make_cache()
    demo.model(mx.array([[1, 2]]), cache)
    core.save_cache(tmp_path / "c", cache, demo, [1, 2])
    with pytest.raises(CacheError, match="another model: tokenizer differ"):
        core.load_cache(tmp_path / "c", other)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    cache = processed("full", PROMPT)
    for refused, ids, problem in [
        (cache, PROMPT[:10], "needs its tokens' ids"),
        (empty("full"), [1], "needs its tokens' ids"),
        (processed("window", PROMPT), PROMPT, "made by another model"),
        (model("full").make_cache(2), PROMPT, "holds one sequence"),
    ]:
        with pytest.raises(CacheError, match=problem):
            core.save_cache(tmp_path / "c", refused, model("full"), ids)
    with pytest.raises(SaveError, match="cannot be written: No such file or directory"):
        core.save_cache(tmp_path / "absent" / "c", cache, model("full"), PROMPT)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have(demo: core.LanguageModel) -> None:
    cache = demo.make_cache()
    demo.model(mx.array([[1, 2]]), cache=cache)
    with pytest.raises(CacheError, match="holds a NUL"):
        core.save_cache("a\0b", cache, demo, [1, 2])
    with pytest.raises(CacheError, match="cannot be read: embedded null byte"):
        core.load_cache("a\0b", demo)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved(tmp_path, "full")
    before = place.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="No space left on device"):
        saved(tmp_path, "full", PROMPT[:20])
    assert list(tmp_path.iterdir()) == [place]
    assert place.read_bytes() == before


def test_what_a_killed_run_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left, busy = (tmp_path / f".prompt.safetensors.partial-{name}" for name in "ab")
    other = tmp_path / ".another.safetensors.partial-a"
    for path in (left, busy, other):
        path.write_bytes(b"half")
    with busy.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        place = saved(tmp_path, "full")
    assert sorted(tmp_path.iterdir()) == sorted([busy, other, place])


def test_files_that_are_no_caches(tmp_path: Path) -> None:
    place = tmp_path / "c"
    with pytest.raises(CacheError, match="cannot be read: No such file"):
        core.load_cache(place, model("full"))
    with pytest.raises(CacheError, match="cannot be read: Is a directory"):
        core.load_cache(tmp_path, model("full"))
    for content in (b"", b"hello", b"\xff" * 100, b"{}" * 50):
        place.write_bytes(content)
        with pytest.raises(CacheError, match=r"c: is not a saved cache, or is damaged: "):
            core.load_cache(place, model("full"))
    mx.save_safetensors(str(tmp_path / "d.safetensors"), {"ids": mx.array([1])})
    with pytest.raises(CacheError, match="is not a saved cache, or is damaged: its header does not describe one"):
        core.load_cache(tmp_path / "d.safetensors", model("full"))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["full", "packed limit", "state"]))
def test_one_changed_byte_or_a_lost_end_is_noticed(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    place = tmp_path / f"{kind}.safetensors"
    if not place.exists():
        core.save_cache(place, processed(kind, PROMPT[:20]), model(kind), PROMPT[:20])
    content = bytearray(place.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 800))
    if data.draw(st.booleans()):
        del content[where:]
    else:
        content[where] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    try:
        cache, ids = core.load_cache(damaged, model(kind))
    except CacheError:
        return
    # What may change is spelling: spaces for padding, an escape for a letter.
    assert ids == PROMPT[:20]
    np.testing.assert_allclose(feed(kind, cache, [5]), feed(kind, processed(kind, ids), [5]), atol=ATOL)


def edited(place: Path, change: Any) -> None:
    """The file again, with another description and a checksum that fits."""
    import core.prompt_cache.file as file_room

    content = place.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    description = json.loads(header["__metadata__"]["core.cache"])
    change(description, header)
    text = json.dumps(description)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    entries = [(name, entry["dtype"], tuple(entry["shape"])) for name, entry in tensors.items()]
    parts = [memoryview(data)[slice(*entry["data_offsets"])] for entry in tensors.values()]
    metadata = {"core.cache": text, "crc32": file_room._checksum(text, entries, parts)}
    place.write_bytes(file_room._header(entries, metadata, parts) + b"".join(parts))


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("full", lambda d, h: d.update(version=2), "another version of core"),
        ("full", lambda d, h: d.update(length=10**15), "tensor 'ids' does not fit"),
        ("full", lambda d, h: d.update(length=0), "damaged description"),
        ("full", lambda d, h: d.update(length=True), "damaged description"),
        ("full", lambda d, h: d.update(length="50"), "damaged description"),
        ("full", lambda d, h: d.pop("bases"), "damaged description"),
        ("full", lambda d, h: d["bases"].update(full=5), "fewer tokens than its length"),
        ("full", lambda d, h: d["bases"].update(full=-1), "damaged description"),
        ("full", lambda d, h: d["bases"].update({"7": 0}), "keeps other tokens"),
        ("full", lambda d, h: d["settings"].update(max_kv_tokens=12), "keeps other tokens"),
        ("full", lambda d, h: d["settings"].update(kv_bits=3), "damaged description"),
        ("full", lambda d, h: d["settings"].update(kv_bits=4, kv_group_size=32), "does not fit this model"),
        ("full", lambda d, h: d["settings"].update(other=1), "damaged description"),
        ("full", lambda d, h: h.pop("blocks.1.0"), "does not fit this model"),
        ("full", lambda d, h: h["blocks.0.0"].update(dtype="U32"), "does not fit this model"),
        ("full", lambda d, h: h["blocks.0.0"].update(shape=[1, 1, 25, 64]), "does not fit this model"),
        ("full", lambda d, h: h.update({"blocks.2.0": h.pop("blocks.1.0")}), "does not fit|no block"),
        ("window", lambda d, h: d["bases"].update({"8": 49}), "fewer tokens than its length"),
        ("window", lambda d, h: d["bases"].update({"8": 10**12}), "fewer tokens than its length"),
        ("limit", lambda d, h: d["bases"].update({"4+12": 47}), "fewer tokens than its length"),
    ],
)
def test_a_description_is_checked_against_the_model(tmp_path: Path, kind: str, change: Any, problem: str) -> None:
    place = saved(tmp_path, kind)
    edited(place, lambda description, header: None)
    core.load_cache(place, model(kind))  # the editing itself does no harm
    edited(place, change)
    with pytest.raises(CacheError, match=problem):
        core.load_cache(place, model(kind))


def test_a_loaded_cache_can_be_kept_for_its_prefix(tmp_path: Path) -> None:
    prefix = core.PrefixCache(1 << 20)
    cache, ids = core.load_cache(saved(tmp_path, "packed"), model("packed"))
    prefix.store(ids, cache)
    fetched, reused = prefix.fetch([*ids, 1], empty("packed"))
    assert reused == len(PROMPT)
    kinds.assert_holds("packed", fetched, ids)


@pytest.mark.parametrize("wrong", [-1, 2**40, 0.5])
def test_ids_that_are_none_are_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(CacheError):
        core.save_cache(tmp_path / "c", processed("full", PROMPT, chunk=20), model("full"), [wrong, *PROMPT[1:]])
    assert list(tmp_path.iterdir()) == []
