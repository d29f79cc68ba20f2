"""``tokenizer.json`` made from the vocabularies that mistral-common bundles.

The published files of these models are megabytes each; the vocabularies are in the test dependency already. The forms
are those of published checkpoints: SentencePiece as ``legacy`` (Prepend normalizer) or ``metaspace``, and byte-level
(Tekken).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import mistral_common
except ModuleNotFoundError:  # a GPU machine without network: only the tests that need its vocabularies are skipped
    DATA = Path("mistral-common is not installed")
else:
    DATA = Path(mistral_common.__file__).parent / "data"
SPM = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
TEKKEN = "tekken_240718.json"
_UNKNOWN, _CONTROL = 2, 3

Json = dict[str, object]


def vocabulary(name: str) -> bytes:
    """A vocabulary file of mistral-common's; the calling test is skipped where that is not installed."""
    pytest.importorskip("mistral_common")
    return (DATA / name).read_bytes()


def sentencepiece_json(version: str, form: str) -> bytes:
    """``tokenizer.json`` of a SentencePiece vocabulary; ``form`` is ``legacy`` or ``metaspace``."""
    pieces = list(_pieces(vocabulary(SPM[version])))
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    best_first = sorted(pieces, key=lambda entry: -entry[1])
    control = {piece for piece, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)}
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    legacy = form == "legacy"
    return _dump(
        added=[_added(vocab[piece], piece) for piece in sorted(control, key=vocab.__getitem__)],
        normalizer={"type": "Sequence", "normalizers": [prepend, replace]} if legacy else None,
        pre_tokenizer=None
        if legacy
        else {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        decoder=[
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
        model={
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges([piece for piece, _, _ in best_first if piece not in control], vocab),
        },
    )


def tekken_json(limit: int | None = None) -> bytes:
    """``tokenizer.json`` of a Tekken vocabulary; ``limit`` keeps its first tokens only."""
    tekken = json.loads(vocabulary(TEKKEN))
    config = tekken["config"]
    special_count = config["default_num_special_tokens"]
    size = min(limit or config["default_vocab_size"], config["default_vocab_size"]) - special_count
    special = tekken_special()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    words = ["".join(shown[b] for b in base64.b64decode(entry["token_bytes"])) for entry in tekken["vocab"][:size]]
    vocab = {word: special_count + i for i, word in enumerate(words)}
    pattern = {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _dump(
        added=[_added(i, literal) for i, literal in enumerate(special)],
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [pattern, byte_level]},
        decoder=[byte_level],
        model={
            "ignore_merges": True,
            "vocab": {**{literal: i for i, literal in enumerate(special)}, **vocab},
            "merges": _merges(words, vocab),
        },
    )


def tekken_special() -> list[str]:
    """Literals of Tekken's control tokens, by id: those of its first models, then fillers."""
    names = "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
    names += " [TOOL_CALLS] <pad> [PREFIX] [MIDDLE] [SUFFIX]"
    known = names.split()
    return known + [f"<SPECIAL_{i}>" for i in range(len(known), 1000)]


def config(**more: object) -> Json:
    """``tokenizer_config.json`` as these models have it."""
    return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **more}


def _dump(*, added: list[Json], normalizer: object, pre_tokenizer: object, decoder: list[Json], model: Json) -> bytes:
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    post_processor = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": decoder[0] if len(decoder) == 1 else {"type": "Sequence", "decoders": decoder},
            "model": {"type": "BPE", **model},
        },
        ensure_ascii=False,
    ).encode()


def _added(token_id: int, content: str) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}


def _merges(words: list[str], vocab: dict[str, int]) -> list[list[str]]:
    """Every split of a word into two words of the vocabulary, words in order: BPE by rank of the result."""
    merges: list[list[str]] = []
    known = set(words)
    for word in words:
        splits = ((word[:i], word[i:]) for i in range(1, len(word)))
        found = [(left, right) for left, right in splits if left in known and right in known]
        merges += (list(pair) for pair in sorted(found, key=lambda pair: (vocab[pair[0]], vocab[pair[1]])))
    return merges


def _pieces(model: bytes) -> Iterator[tuple[str, float, int]]:
    """Piece, score and type, in order of ids: field 1 of SentencePiece's ModelProto."""
    for number, value in _fields(model):
        if number == 1 and isinstance(value, bytes):
            piece, score, kind = "", 0.0, 1
            for inner, item in _fields(value):
                if inner == 1 and isinstance(item, bytes):
                    piece = item.decode()
                elif inner == 2 and isinstance(item, bytes):
                    (score,) = struct.unpack("<f", item)
                elif inner == 3 and isinstance(item, int):
                    kind = item
            yield piece, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of the fields of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(wire) or varint()
        yield key >> 3, data[at : at + size]
        at += size
