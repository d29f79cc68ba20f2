"""Packed keys and values: attention to exactly what ``mx.quantize`` makes of them, and not far from the floats."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.device import backend
from core.errors import UsageError
from core.nn import Cache, CacheSettings, CacheSpec
from core.nn.span import SPARE
from core.nn.step import StepPlan

from .definition import HEADS, KV_HEADS, Row, Sees, first_and_last, last
from .definition import take_step as take

DIM = 64
ATOL = 1e-5 if backend() == "cpu" else 2e-3  # a GPU's products with packed matrices may round to TF32
KINDS: list[tuple[CacheSpec, int | None, int | None, Sees]] = [
    (CacheSpec.full(KV_HEADS, DIM), None, None, last(None)),
    (CacheSpec.sliding(8, KV_HEADS, DIM), 8, None, last(8)),
    (CacheSpec.full(KV_HEADS, DIM), None, 12, first_and_last(4, 12)),
]


class Packed:
    """A cache of one kind, and the rows it should hold."""

    def __init__(self, kind: int, bits: int, group: int, batch: int = 1, seed: int = 0) -> None:
        spec, self.window, limit, self.sees = KINDS[kind]
        self.bits, self.group, self.rng = bits, group, np.random.default_rng(seed)
        self.cache = Cache([spec], batch, CacheSettings(max_kv_tokens=limit, kv_bits=bits, kv_group_size=group))
        self.rows = [Row() for _ in range(batch)]

    def step(self, seq: int, counts: list[int] | None = None) -> None:
        """What each token attends to is attention, by the definition, to the dequantized keys and values."""
        take(
            self.cache, self.rows, seq, counts, self.sees, self.rng, dim=DIM, window=self.window, stored=self.stored,
            atol=ATOL,
        )  # fmt: skip

    def stored(self, floats: np.ndarray) -> np.ndarray:
        """Affine quantization from its definition: each group's smallest and largest, and steps between."""
        packed = mx.quantize(mx.array(floats), group_size=self.group, bits=self.bits)
        levels = unpack(np.array(packed[0]), self.bits).reshape(*floats.shape[:-1], -1, self.group)
        scales, biases = (np.array(part)[..., None] for part in packed[1:])
        return (levels * scales + biases).reshape(floats.shape)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The integers in uint32 words, lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & (2**bits - 1)).reshape(*words.shape[:-1], -1).astype(np.float32)


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (8, 32), (4, 64), (4, 32)])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_one_after_another_and_in_chunks(kind: int, bits: int, group: int) -> None:
    packed = Packed(kind, bits, group)
    for seq in (1, 1, 9, 5, 60, *[1] * 40, 2, 16, 17, 30):
        packed.step(seq)


@settings(max_examples=25)
@given(data=st.data(), kind=st.sampled_from(range(len(KINDS))), seed=st.integers(0, 2**32 - 1))
def test_rows_of_different_lengths_rewound_and_copied(data: st.DataObject, kind: int, seed: int) -> None:
    packed = Packed(kind, data.draw(st.sampled_from([4, 8])), 32, batch=3, seed=seed)
    longest = [0, 0, 0]
    for _ in range(data.draw(st.integers(1, 6))):
        seq = data.draw(st.sampled_from([1, 1, 4, 9, 35]))
        packed.step(seq, data.draw(st.none() | st.lists(st.integers(0, seq), min_size=3, max_size=3)))
        longest = [max(pair) for pair in zip(longest, packed.cache.lengths, strict=True)]
        back = [
            data.draw(st.integers(0, length - max(0, most - SPARE)))
            for length, most in zip(packed.cache.lengths, longest, strict=True)
        ]
        packed.cache.rewind(back)
        for row, length in zip(packed.rows, packed.cache.lengths, strict=True):
            row.cut(length)
        packed.cache = packed.cache.copy()
    packed.step(3)


def test_a_copy_is_independent() -> None:
    packed = Packed(0, 8, 64)
    packed.step(20)
    twin = Packed(0, 8, 64, seed=7)
    twin.cache, twin.rows = packed.cache.copy(), [packed.rows[0].copy()]
    packed.step(3)
    twin.step(12)
    packed.step(1)


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.01), (4, 0.15)])
@pytest.mark.parametrize("seq", [1, 40])
def test_not_far_from_floats(bits: int, bound: float, seq: int) -> None:
    rng = np.random.default_rng(5)
    q = mx.array(rng.standard_normal((2, HEADS, seq, DIM), dtype=np.float32))
    k, v = (mx.array(rng.standard_normal((2, KV_HEADS, seq, DIM), dtype=np.float32)) for _ in range(2))
    outputs = []
    for asked in (CacheSettings(), CacheSettings(kv_bits=bits)):
        step = StepPlan(2, seq, 1, Cache([CacheSpec.full(KV_HEADS, DIM)], 2, asked)).steps()[0]
        outputs.append(step.attend(q, k, v, scale=DIM**-0.5))
    error = mx.linalg.norm(outputs[1] - outputs[0]) / mx.linalg.norm(outputs[0])
    assert 0 < error.item() < bound


def test_half_precision_stays_half_and_few_queries_agree_with_many() -> None:
    rng = np.random.default_rng(6)
    q = mx.array(rng.standard_normal((1, HEADS, 12, DIM))).astype(mx.bfloat16)
    k, v = (mx.array(rng.standard_normal((1, KV_HEADS, 12, DIM))).astype(mx.bfloat16) for _ in range(2))
    asked = CacheSettings(kv_bits=8)
    whole = StepPlan(1, 12, 1, Cache([CacheSpec.full(KV_HEADS, DIM)], 1, asked)).steps()[0]
    together = whole.attend(q, k, v, scale=DIM**-0.5)
    cache, parts = Cache([CacheSpec.full(KV_HEADS, DIM)], 1, asked), []
    for t in range(12):
        step = StepPlan(1, 1, 1, cache).steps()[0]
        parts.append(step.attend(*(x[:, :, t : t + 1] for x in (q, k, v)), scale=DIM**-0.5))
        cache.commit()
    assert together.dtype == parts[0].dtype == mx.bfloat16
    assert mx.allclose(together, mx.concatenate(parts, axis=2), atol=0.03).item()


def test_bytes_are_those_of_bits_and_scales() -> None:
    packed = Packed(0, 4, 64)
    packed.step(256)
    elements = 256 * KV_HEADS * 2 * DIM
    assert packed.cache.nbytes == elements // 2 + elements // 64 * 2 * 4


@pytest.mark.parametrize(
    ("dims", "hint"),
    [((32, 32), "kv_group_size=32 does it"), ((80, 80), "No group size does it"), ((96, 64), "kv_group_size=32 does")],
)
def test_heads_that_do_not_divide_into_groups(dims: tuple[int, int], hint: str) -> None:
    specs = [CacheSpec.state({"a": (1,)}), CacheSpec.full(KV_HEADS, *dims)]
    with pytest.raises(UsageError, match=rf"block 1 cannot keep.*in 8 bits.*kv_group_size, 64, found \d+\)\n.*{hint}"):
        Cache(specs, 1, CacheSettings(kv_bits=8))
    Cache(specs, 1, CacheSettings())
