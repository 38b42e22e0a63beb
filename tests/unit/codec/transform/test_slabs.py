"""Caches through `ftc1`: what comes back, what lengths depend on, and what a mutated payload does."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codec, schedule
from splitinfer.cache.snapshot import CacheSnapshot, cut
from splitinfer.codec.transform import LEVELS, Artefact
from splitinfer.errors import ArtefactError, CodecError, LayoutMismatchError, TruncatedError
from splitinfer.handoff import CacheLayout
from tests.support.artefacts import LAYOUT, artefact, drawn
from tests.support.layouts import full

TOKENS_ONLY = CacheLayout(LAYOUT.layers[:2])


def packed(snapshot: CacheSnapshot, name: str, *, base: int = 0) -> bytes:
    padded = schedule.pad_new_tokens(snapshot.true_tokens, base)
    made = codec.pack(snapshot, codec=name, padded_tokens=padded, base_tokens=base, artefact=artefact())
    return b"".join(map(bytes, made.slabs()))


def received(data: bytes, tokens: int, name: str, *, base: CacheSnapshot | None = None) -> CacheSnapshot:
    held = base.true_tokens if base else 0
    sink = codec.sink(
        LAYOUT,
        codec=name,
        true_tokens=tokens,
        padded_tokens=schedule.pad_new_tokens(tokens, held),
        base=base,
        artefact=artefact(),
    )
    at = 0
    for size in sink.sizes():
        sink.slab()[:] = data[at : at + size]
        at += size
    assert at == len(data)
    return sink.finish()


def error(one: CacheSnapshot, other: CacheSnapshot) -> float:
    """Return the relative squared error over keys and values of the first three layers."""
    pairs = [(one.layers[i][name], other.layers[i][name]) for i in range(3) for name in ("keys", "values")]
    lost = sum(float((a - b).square().sum()) for a, b in pairs)
    return lost / sum(float((a - a.mean()).square().sum()) for a, _ in pairs)


@settings(deadline=None, max_examples=12)
@given(st.integers(2, 700), st.sampled_from(list(LEVELS)))
def test_caches_come_back_nearly_and_states_exactly(tokens: int, name: str) -> None:
    snapshot = drawn(LAYOUT, tokens, seed=tokens)
    moved = received(packed(snapshot, name), tokens, name)
    assert moved.layout == snapshot.layout
    for part in ("conv_states_0", "recurrent_states_0"):
        assert torch.equal(moved.layers[3][part], snapshot.layers[3][part])
    assert error(snapshot, moved) < 0.5


def test_more_bits_lose_less() -> None:
    snapshot = drawn(LAYOUT, 400, seed=3)
    lost = [error(snapshot, received(packed(snapshot, name), 400, name)) for name in LEVELS]
    assert lost == sorted(lost)
    assert lost[0] < 0.01


def test_the_first_token_is_carried_in_bfloat16() -> None:
    snapshot = drawn(LAYOUT, 90, seed=1)
    moved = received(packed(snapshot, "ftc1-0.375"), 90, "ftc1-0.375")
    for layer in range(2):
        first, again = snapshot.layers[layer]["values"][:, :, 0], moved.layers[layer]["values"][:, :, 0]
        assert torch.equal(again, first.to(torch.bfloat16).float())


@pytest.mark.parametrize("name", list(LEVELS))
def test_a_length_is_that_of_the_level_and_the_token_class_for_any_text(name: str) -> None:
    lengths = {
        len(packed(drawn(LAYOUT, tokens, seed=seed, scale=scale), name))
        for seed, (tokens, scale) in enumerate([(257, 1.0), (300, 1e3), (320, 0.0), (290, 1e-6), (257, 30.0)])
    }
    expected = codec.size_bytes(LAYOUT, codec=name, padded_tokens=320, artefact=artefact())
    assert lengths == {expected}


@pytest.mark.parametrize("name", list(LEVELS))
def test_a_level_gives_exactly_its_bits_to_all_groups_together(name: str) -> None:
    row, channels = list(LEVELS).index(name), sum(group.channels for group in artefact().groups)
    bits = [int(group.bits[row].sum()) for group in artefact().groups]
    assert sum(bits) == round(LEVELS[name] * channels)
    states = sum(spec.size_bytes for spec in schedule.slabs(LAYOUT, 128) if spec.layer == 3)
    blocks, first_row = 2, 2 * artefact().groups[0].channels
    size = codec.size_bytes(LAYOUT, codec=name, padded_tokens=128, artefact=artefact())
    assert size == states + first_row + blocks * 8 * sum(bits)


def full_group_alone() -> Artefact:
    """The artefact without its group of windows."""
    made = artefact()
    return replace(made, facts=made.facts.model_copy(update={"groups": made.facts.groups[:1]}), groups=made.groups[:1])


def test_a_later_turn_brings_the_new_rows_and_their_length_does_not_show_the_base() -> None:
    layout = TOKENS_ONLY
    made = full_group_alone()
    sizes = {
        codec.size_bytes(layout, codec="ftc1-1", padded_tokens=base + 128, base_tokens=base, artefact=made)
        for base in (0, 1, 70, 512, 700)
    }
    assert len(sizes) == 1


def test_rows_of_the_base_are_kept_as_they_are() -> None:
    snapshot = drawn(TOKENS_ONLY, 200, seed=5)
    base = cut(snapshot, 100)
    made = full_group_alone()
    padded = schedule.pad_new_tokens(200, 100)
    source = codec.pack(snapshot, codec="ftc1-2", padded_tokens=padded, base_tokens=100, artefact=made, is_shared=True)
    sink = codec.sink(TOKENS_ONLY, codec="ftc1-2", true_tokens=200, padded_tokens=padded, base=base, artefact=made)
    for slab in source.slabs():
        sink.slab()[:] = slab
    moved = sink.finish()
    for layer in range(2):
        keys, again = snapshot.layers[layer]["keys"], moved.layers[layer]["keys"]
        assert torch.equal(keys[:, :, :100], again[:, :, :100])
        assert not torch.equal(keys[:, :, 100:], again[:, :, 100:])


def test_a_part_of_a_cache_is_used_up_to_the_last_range_that_all_groups_have() -> None:
    snapshot, made = drawn(TOKENS_ONLY, 700, seed=6), full_group_alone()
    padded = schedule.pad_tokens(700)
    source = codec.pack(snapshot, codec="ftc1-1", padded_tokens=padded, artefact=made)
    sink = codec.sink(TOKENS_ONLY, codec="ftc1-1", true_tokens=700, padded_tokens=padded, artefact=made)
    sink.slab()[:] = next(source.slabs())
    sink.slab()
    part = sink.salvage([256, 512, 700])
    assert part is not None
    assert part.true_tokens == 512


@pytest.mark.parametrize("where", ["first", "code", "padding"])
def test_bytes_that_no_sender_writes_are_refused(where: str) -> None:
    data = bytearray(packed(drawn(LAYOUT, 65, seed=2), "ftc1-1"))
    if where == "first":
        data[0:2] = b"\x80\x7f"  # infinity
    elif where == "code":
        data[2 * 64] |= 1  # row 0 has no code: it stands as it is
    else:
        data[2 * 64 + 8 * sum(artefact().groups[0].bits[2].tolist()) + 7] |= 0x80  # row 127 is padding
    with pytest.raises(LayoutMismatchError):
        received(bytes(data), 65, "ftc1-1")


def test_mutated_payloads_are_refused_or_give_a_cache_of_the_right_shapes() -> None:
    good, rng = packed(drawn(LAYOUT, 120, seed=4), "ftc1-0.5"), random.Random(0)  # noqa: S311
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            moved = received(bytes(data), 120, "ftc1-0.5")
        except LayoutMismatchError:
            refused += 1
            continue
        assert all(bool(moved.layers[i][n].isfinite().all()) for i in range(3) for n in ("keys", "values"))
        assert moved.layers[0]["keys"].shape == (1, 2, 120, 8)
    assert 0 < refused < 300


def test_missing_slabs_are_refused() -> None:
    sink = codec.sink(LAYOUT, codec="ftc1-1", true_tokens=8, padded_tokens=64, artefact=artefact())
    sink.slab()
    with pytest.raises(TruncatedError):
        sink.finish()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_cannot_be_packed(bad: float) -> None:
    snapshot = drawn(LAYOUT, 70, seed=1)
    snapshot.layers[1]["values"][0, 0, 5, 0] = bad
    with pytest.raises(CodecError):
        packed(snapshot, "ftc1-1")


def test_a_calibrated_codec_without_an_artefact_is_refused() -> None:
    with pytest.raises(ArtefactError, match="splitinfer model calibrate"):
        codec.pack(drawn(LAYOUT, 8), codec="ftc1-1", padded_tokens=64)


def test_layers_of_another_shape_are_refused() -> None:
    with pytest.raises(ArtefactError, match="does not fit"):
        codec.sink(CacheLayout((full(),)), codec="ftc1-1", true_tokens=8, padded_tokens=64, artefact=artefact())
