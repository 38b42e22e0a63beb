"""Rules of the lossless coder: every bit pattern survives, and no declared length is believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitinfer.cache.snapshot import DTYPES
from splitinfer.codec.coder import SlabShape
from splitinfer.codec.lossless import LosslessCoder, join, split
from splitinfer.errors import LayoutMismatchError

DTYPE_NAMES = sorted(DTYPES)


def encoded(rows: torch.Tensor, shape: SlabShape) -> torch.Tensor:
    coder = LosslessCoder()
    slab = torch.empty(coder.size_bytes(shape), dtype=torch.uint8)
    return slab[: coder.encode(rows, slab, shape)].clone()


def decoded(slab: torch.Tensor, held: int, shape: SlabShape) -> torch.Tensor:
    rows = torch.empty((shape.heads, held, shape.dim), dtype=DTYPES[shape.dtype])
    LosslessCoder().decode(slab, rows, shape)
    return rows


def as_bytes(rows: torch.Tensor) -> bytes:
    return rows.contiguous().view(torch.uint8).numpy().tobytes()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from((np.uint16, np.uint32)).flatmap(lambda kind: arrays.arrays(kind, st.integers(0, 50))))
def test_planes_give_the_words_back(words: np.ndarray) -> None:
    planes = np.empty((words.itemsize, words.size), dtype=np.uint8)
    turned, back = words.copy(), np.empty_like(words)
    spare = np.empty_like(words)
    split(turned, planes, spare)
    join(planes, back, spare)
    assert np.array_equal(back, words)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_top_plane_is_the_exponent(dtype: str) -> None:
    values = torch.tensor([1.0, -1.0, 1.5, 4.0, 0.0], dtype=DTYPES[dtype])
    kind = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}[values.itemsize]
    words = values.view(kind[0]).numpy().view(kind[1]).copy()
    planes = np.empty((words.itemsize, words.size), dtype=np.uint8)
    split(words, planes, np.empty_like(words))
    assert planes[-1].tolist() == [127, 127, 127, 129, 0]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPE_NAMES), st.integers(1, 40), st.integers(0, 9), st.booleans(), st.data())
def test_any_bits_survive(dtype: str, held: int, padding: int, is_smooth: bool, data: st.DataObject) -> None:
    shape = SlabShape(2, held + padding, 3, dtype)
    size = 2 * held * 3 * DTYPES[dtype].itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    rows = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(DTYPES[dtype]).view(2, held, 3)
    if is_smooth:
        rows = torch.ones_like(rows)
    assert as_bytes(decoded(encoded(rows, shape), held, shape)) == as_bytes(rows)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_special_numbers_survive_compression(dtype: str) -> None:
    kind = DTYPES[dtype]
    integers = {2: torch.int16, 4: torch.int32}[kind.itemsize]
    specials = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(kind).tiny / 2], dtype=kind)
    payload = (specials[4:5].view(integers) | 5).view(kind)
    rows = torch.cat([specials, payload, torch.ones(993, dtype=kind)]).view(1, 10, 100)
    shape = SlabShape(1, 10, 100, dtype)
    slab = encoded(rows, shape)
    assert slab[0] == 1
    assert as_bytes(decoded(slab, 10, shape)) == as_bytes(rows)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_what_does_not_shrink_is_stored_one_byte_longer(dtype: str) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 256, (1, 64, 64 * DTYPES[dtype].itemsize), dtype=torch.uint8, generator=generator)
    shape = SlabShape(1, 64, 64, dtype)
    slab = encoded(rows.view(DTYPES[dtype]), shape)
    assert slab[0] == 0
    assert len(slab) == 1 + shape.raw_bytes
    assert slab[1:].numpy().tobytes() == rows.numpy().tobytes()


def test_normal_elements_shrink() -> None:
    shape = SlabShape(2, 512, 64, "bfloat16")
    rows = torch.randn((2, 512, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    assert len(encoded(rows, shape)) < shape.raw_bytes / 1.4


SHAPE = SlabShape(1, 64, 16, "bfloat16")
ROWS = torch.ones((1, 64, 16), dtype=torch.bfloat16)
LOWER = 1 + 64 * 16


def forged(frame: bytes, first: int = 1) -> torch.Tensor:
    return torch.frombuffer(bytearray(bytes([first]) + bytes(64 * 16) + frame), dtype=torch.uint8)


def frame_of(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


BOMB = frame_of(bytes(1 << 24))
FORGERIES = {
    "a bomb": forged(BOMB),
    "a frame that is one byte short": forged(frame_of(bytes(64 * 16 - 1))),
    "a frame that is one byte long": forged(frame_of(bytes(64 * 16 + 1))),
    "a frame without a length": forged(frame_of(bytes(64 * 16), write_content_size=False)),
    "a frame that ends early": forged(frame_of(bytes(range(256)) * 4)[:-1]),
    "bytes after the frame": forged(frame_of(bytes(64 * 16)) + b"\x00"),
    "two frames": forged(frame_of(bytes(64 * 16)) * 2),
    "no frame": forged(b""),
    "no zstd": forged(b"not zstd at all"),
    "a skippable frame": forged(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"),
    "an unknown form": forged(frame_of(bytes(64 * 16)), first=2),
    "a stored form of another length": torch.zeros(2 * 64 * 16, dtype=torch.uint8),
    "nothing": torch.zeros(0, dtype=torch.uint8),
    "a first byte alone": torch.ones(1, dtype=torch.uint8),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_slab_is_refused(name: str) -> None:
    with pytest.raises(LayoutMismatchError, match="compressed slab"):
        decoded(FORGERIES[name], 64, SHAPE)


def test_a_declared_length_is_compared_before_anything_is_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def decompress(self, *_: object, **__: object) -> bytes:
            raise AssertionError("decompressed")

    coder = LosslessCoder()
    monkeypatch.setattr(coder, "_decompressor", Refusing())
    with pytest.raises(LayoutMismatchError):
        coder.decode(forged(BOMB), torch.empty_like(ROWS), SHAPE)


@pytest.mark.parametrize("is_stored", [False, True])
def test_padding_that_is_not_zero_is_refused(is_stored: bool) -> None:
    rows = torch.ones((1, 64, 16), dtype=torch.bfloat16)
    if is_stored:
        rows = torch.randint(0, 256, (1, 64, 32), dtype=torch.uint8).view(torch.bfloat16)
    rows[0, 63] = -0.0
    slab = encoded(rows, SHAPE)
    assert slab[0] == (0 if is_stored else 1)
    with pytest.raises(LayoutMismatchError, match="padding"):
        decoded(slab, 63, SHAPE)


def test_no_rows_are_one_byte() -> None:
    shape = SlabShape(2, 0, 8, "bfloat16")
    slab = encoded(torch.empty((2, 0, 8), dtype=torch.bfloat16), shape)
    assert slab.tolist() == [0]
    assert decoded(slab, 0, shape).shape == (2, 0, 8)
