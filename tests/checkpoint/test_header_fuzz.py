"""Fuzz: whatever the bytes, the header parser gives tensors whose invariants hold, or a CheckpointError.

What it accepts, the safetensors library accepts with the same content; where the library accepts and it refuses, the
reason is one of the few in which it is stricter on purpose.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from core.checkpoint.header import DTYPES, TensorInfo, read_header
from core.errors import CheckpointError

from .test_header import InMemory, file_of

STRICTER = ("twice in one object", "nested too deeply", "a number that no reader accepts")
"""Duplicate keys, which the format forbids and the library does not look for; data that the library skips unread."""

LOOSER = ("invalid JSON in header",)
"""The library's own JSON parser refuses some spellings in values that nobody uses (NaN under an unknown key, -0)."""

fuzz = settings(max_examples=200, deadline=None)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@st.composite
def valid_files(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """The entries and data of a well-formed file."""
    entries: dict[str, Any] = {}
    stop = 0
    for name in draw(st.lists(names, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        if math.prod(shape) * DTYPES[dtype] % 8:
            shape.append(8)
        start, stop = stop, stop + math.prod(shape) * DTYPES[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.dictionaries(names, names, max_size=3))
    order = draw(st.permutations(list(entries)))
    return {name: entries[name] for name in order}, bytes(stop)


def parse(file: bytes) -> dict[str, TensorInfo] | CheckpointError:
    try:
        return read_header(InMemory(file), where="file", shard="s")
    except CheckpointError as error:
        return error


def check(file: bytes) -> dict[str, TensorInfo] | CheckpointError:
    """Parses, checks what came out, and compares with the library."""
    result = parse(file)
    try:
        theirs = {
            name: (info["dtype"], tuple(info["shape"]), info["data"]) for name, info in safetensors.deserialize(file)
        }
        refusal = ""
    except safetensors.SafetensorError as error:
        theirs, refusal = None, str(error)
    if isinstance(result, CheckpointError):
        text = str(result)
        assert text.startswith("file: ")
        assert len(text) < 1500
        text.encode()
        assert theirs is None or any(reason in text for reason in STRICTER), text
        return result
    stop = 8 + struct.unpack("<Q", file[:8])[0]
    for name, info in result.items():
        assert (info.name, info.shard, info.start) == (name, "s", stop)
        assert info.nbytes * 8 == math.prod(info.shape) * DTYPES[info.dtype]
        stop = info.stop
    assert stop == len(file)
    if theirs is None:
        assert any(reason in refusal for reason in LOOSER), refusal
    else:
        assert {n: (i.dtype, i.shape, file[i.start : i.stop]) for n, i in result.items()} == {
            name: (dtype, shape, bytes(data)) for name, (dtype, shape, data) in theirs.items()
        }
    return result


@fuzz
@given(valid_files())
def test_valid_files(file: tuple[dict[str, Any], bytes]) -> None:
    entries, data = file
    result = check(file_of(entries, data))
    assert not isinstance(result, CheckpointError)
    assert result.keys() == entries.keys() - {"__metadata__"}


@fuzz
@given(st.binary(max_size=64), st.booleans())
def test_arbitrary_bytes(data: bytes, with_length: bool) -> None:
    check(struct.pack("<Q", len(data)) + data if with_length else data)


@fuzz
@given(valid_files(), st.data())
def test_flipped_cut_and_inserted_bytes(file: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    damaged = bytearray(file_of(*file))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "end"])):
            case "flip" if damaged:
                damaged[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "end":
                damaged = damaged[:at]
    check(bytes(damaged))


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([2**64, -1, "F32", "F4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@fuzz
@given(valid_files(), st.data())
def test_values_of_other_kinds_in_valid_places(file: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    """Well-formed JSON all along, so that the checks behind the JSON parser are the ones that must hold."""
    entries, content = file
    entries = json.loads(json.dumps(entries))
    name = data.draw(st.sampled_from([*entries, "new"]))
    target = data.draw(st.sampled_from(["entry", "dtype", "shape", "data_offsets", "size", "offset", "more"]))
    value = data.draw(junk)
    if target == "entry" or name in ("new", "__metadata__"):
        entries[name] = value
    elif target == "size":
        entries[name]["shape"].append(value)
    elif target == "offset":
        entries[name]["data_offsets"][data.draw(st.integers(0, 1))] = value
    else:
        entries[name][target] = value
    check(file_of(entries, content))
