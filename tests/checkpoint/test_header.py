"""Headers: every way in which a file can break the format is one error that names file, tensor, expected and found."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors

from core.checkpoint.header import DTYPES, MAX_HEADER, TensorInfo, read_header
from core.errors import CheckpointError


class InMemory:
    """A file in memory that keeps a record of the ranges read."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.ranges: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> bytes:
        self.ranges.append((start, stop))
        return self.data[start:stop]


def with_length(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def file_of(entries: Any, data: bytes = b"") -> bytes:
    return with_length(json.dumps(entries).encode(), data)


def parse(file: bytes, size: int | None = None) -> dict[str, TensorInfo]:
    return read_header(InMemory(file, size), where="x/model.safetensors", shard="model.safetensors")


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_tensors_come_in_the_order_of_their_data_with_absolute_offsets() -> None:
    file = file_of(
        {
            "b": entry("BF16", [2, 3], [16, 28]),
            "__metadata__": {"format": "pt"},
            "a": entry(),
            "s": entry("U8", [], [28, 29]),
        },
        bytes(29),
    )
    data = len(file) - 29
    tensors = parse(file)
    assert list(tensors) == ["a", "b", "s"]
    assert tensors["b"] == TensorInfo("b", "BF16", (2, 3), "model.safetensors", data + 16, data + 28)
    assert tensors["b"].nbytes == 12
    assert tensors["s"].shape == ()


def test_only_the_length_and_the_header_are_read() -> None:
    file = InMemory(file_of({"a": entry()}, bytes(16)))
    read_header(file, where="x", shard="x")
    assert file.ranges == [(0, 8), (8, len(file.data) - 16)]


def test_no_tensors_padding_and_unknown_keys_are_fine() -> None:
    assert parse(file_of({})) == {}
    assert parse(with_length(b'{"__metadata__":null}' + b" " * 7)) == {}
    assert list(parse(file_of({"a": entry(later="addition")}, bytes(16)))) == ["a"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_one_that_safetensors_reads(dtype: str) -> None:
    file = file_of({"a": entry(dtype, [3, 8], [0, 3 * DTYPES[dtype]])}, bytes(3 * DTYPES[dtype]))
    assert parse(file)["a"].nbytes == 3 * DTYPES[dtype]
    ((name, info),) = safetensors.deserialize(file)
    assert (name, info["shape"]) == ("a", [3, 8])


def test_no_dtype_of_safetensors_is_missing() -> None:
    """Its error for an unknown dtype lists the known ones."""
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(file_of({"a": entry("XX")}, bytes(16)))
    _, _, known = str(caught.value).partition("expected one of ")
    assert set(known.split("`")[1::2]) == set(DTYPES)


HUGE = 2**63
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"

DAMAGED: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "is an empty file (expected a safetensors file, found 0 bytes)"),
    "shorter than its length": (
        b"\x10\0\0\0\0",
        "is too short for a safetensors file (expected at least 8 bytes, found 5)",
    ),
    "git-LFS pointer": (LFS, "is a git-LFS pointer, not the file itself\n  run `git lfs pull`"),
    "another kind of file": (
        b"<!DOCTYPE html><html>",
        "is not a safetensors file: its first 8 bytes are not a header length",
    ),
    "header over the limit": (struct.pack("<Q", MAX_HEADER + 1), "expected a header of at most 100,000,000 bytes"),
    "header longer than the file": (
        struct.pack("<Q", 100) + b"{}",
        "is cut off inside its header (expected at least 108",
    ),
    "empty header": (with_length(b""), "its header is not a JSON object"),
    "not JSON": (with_length(b"{'a': 1}"), "its header is not valid JSON at line 1, column 2"),
    "bytes after the JSON": (with_length(b"{}\0\0"), "its header is not valid JSON at line 1, column 3: Extra data"),
    "a list": (
        with_length(b"[]"),
        "its header is not a JSON object (expected a header that starts with {, found b'[]')",
    ),
    "a blank first": (with_length(b" {}"), "expected a header that starts with {"),
    "not UTF-8": (with_length(b'{"\xff":1}'), "its header is not UTF-8 text (found byte 0xff at 2)"),
    "duplicate tensor": (
        with_length(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "its header has the key 'a' twice",
    ),
    "duplicate key": (
        with_length(b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        "its header has the key 'dtype' twice",
    ),
    "nested deeply": (with_length(b'{"a":' + b"[" * 5000), "its header is nested too deeply"),
    "digits": (with_length(b'{"a":' + b"9" * 5000 + b"}"), "has a number that no reader accepts"),
    "metadata is a list": (file_of({"__metadata__": []}), "has a bad __metadata__"),
    "metadata of numbers": (
        file_of({"__metadata__": {"a": 1}}),
        "has a bad __metadata__ at 'a' (expected a string, found 1)",
    ),
    "entry is a list": (file_of({"a": []}), "tensor 'a': its entry is not an object"),
    "entry without dtype": (file_of({"a": {"shape": []}}), "tensor 'a': its entry has no dtype"),
    "entry without shape": (file_of({"a": {"dtype": "F32"}}), "tensor 'a': its entry has no shape"),
    "entry without offsets": (
        file_of({"a": {"dtype": "F32", "shape": []}}),
        "tensor 'a': its entry has no data_offsets",
    ),
    "name is half a character": (with_length(b'{"\\ud800":{}}'), "its name is not Unicode text"),
    "unknown dtype": (file_of({"a": entry("F9_E9")}), "tensor 'a': unknown dtype (expected one of BOOL, F4"),
    "dtype is a list": (file_of({"a": entry(["F32"])}), "tensor 'a': unknown dtype"),
    "dtype in lower case": (file_of({"a": entry("f32")}), "found 'f32'"),
    "shape is a number": (file_of({"a": entry(shape=4)}), "tensor 'a': bad shape"),
    "shape of floats": (file_of({"a": entry(shape=[2.0, 2.0])}), "tensor 'a': bad shape"),
    "shape of bools": (file_of({"a": entry(shape=[True, 4])}), "found [true, 4]"),
    "negative size": (file_of({"a": entry(shape=[-2, -2])}), "found [-2, -2]"),
    "size over 64 bits": (file_of({"a": entry(shape=[2**64])}), "tensor 'a': bad shape"),
    "elements overflow": (file_of({"a": entry(shape=[HUGE, 2])}), "its number of elements overflows 64 bits"),
    "elements overflow before a zero": (file_of({"a": entry(shape=[HUGE, 2, 0])}), "elements overflows 64 bits"),
    "bits overflow": (file_of({"a": entry("F64", [2**59])}), "its number of bits overflows 64 bits"),
    "half a byte": (file_of({"a": entry("F4", [3], [0, 1])}, b"a"), "3 elements of F4 do not fill whole bytes"),
    "negative offset": (file_of({"a": entry(offsets=[-16, 0])}), "tensor 'a': bad data_offsets"),
    "one offset": (file_of({"a": entry(offsets=[0])}), "tensor 'a': bad data_offsets"),
    "three offsets": (file_of({"a": entry(offsets=[0, 8, 16])}), "tensor 'a': bad data_offsets"),
    "offset over 64 bits": (file_of({"a": entry(offsets=[0, 2**64])}), "tensor 'a': bad data_offsets"),
    "reversed offsets": (file_of({"a": entry(offsets=[16, 0])}), "tensor 'a': its data ends before it starts"),
    "range too short": (
        file_of({"a": entry(offsets=[0, 15])}, bytes(15)),
        "tensor 'a': its byte range does not fit F32 [2, 2] (expected 16 bytes, found 15)",
    ),
    "overlap": (
        file_of({"a": entry(), "b": entry(offsets=[8, 24])}, bytes(24)),
        "tensor 'b' overlaps tensor 'a' (expected data_offsets from 16, found 8)",
    ),
    "hole": (
        file_of({"a": entry(), "b": entry(offsets=[20, 36])}, bytes(36)),
        "tensor 'b' leaves a hole after tensor 'a' (expected data_offsets from 16, found 20)",
    ),
    "hole at the start": (
        file_of({"a": entry(offsets=[4, 20])}, bytes(20)),
        "tensor 'a' leaves a hole after the header",
    ),
    "truncated": (
        file_of({"a": entry(), "b": entry(offsets=[16, 32])}, bytes(12)),
        "is truncated: tensor 'a' and 1 more reach past its end (expected ",
    ),
    "more than its tensors": (file_of({"a": entry()}, bytes(17)), "has bytes at its end that no tensor owns"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_one_short_error(damage: str) -> None:
    file, problem = DAMAGED[damage]
    with pytest.raises(CheckpointError) as caught:
        parse(file)
    text = str(caught.value)
    assert text.startswith("x/model.safetensors: ")
    assert problem in text
    assert text.count("\n") <= 1
    assert caught.value.where == "x/model.safetensors"
    assert caught.value.__cause__ is None


def test_a_truncated_file_says_how_much_is_there() -> None:
    file = file_of({"a": entry()}, bytes(16))
    with pytest.raises(CheckpointError, match=rf"expected {len(file)} bytes, found {len(file) - 1}"):
        parse(file[:-1])


def test_a_file_that_shrinks_while_it_is_read() -> None:
    file = file_of({"a": entry()}, bytes(16))
    with pytest.raises(CheckpointError, match="ended while its header was read"):
        parse(file[:20], size=len(file))
    with pytest.raises(CheckpointError, match="too short"):
        parse(b"", size=len(file))


def test_a_long_name_does_not_flood_the_error() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(file_of({"n" * 100_000 + "\n": entry(dtype="d" * 100_000)}))
    assert len(str(caught.value)) < 1000


def test_a_name_with_control_characters_is_escaped() -> None:
    with pytest.raises(CheckpointError, match=r"tensor '\\x1b\[2J\\n': unknown dtype"):
        parse(file_of({"\x1b[2J\n": entry("?")}))


def test_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.checkpoint.header.MAX_TENSORS", 2)
    empty = entry("U8", [0], [0, 0])
    assert len(parse(file_of({"a": empty, "b": empty}))) == 2
    with pytest.raises(CheckpointError, match="more tensors than any model file"):
        parse(file_of({"a": empty, "b": empty, "c": empty}))
