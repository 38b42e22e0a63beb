"""Rules of the lossy coders: error below half a step, groups that stand alone, nothing that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.cache.snapshot import DTYPES
from splitinfer.codec.coder import SlabShape
from splitinfer.codec.quantised import GROUP, MAX_ABSOLUTE, Axis, QuantisedCoder
from splitinfer.errors import CodecError, LayoutMismatchError
from splitinfer.schedule import RANGE_TOKENS

AXES: tuple[Axis, ...] = ("per_channel", "per_token")
axes, bit_counts, dtypes = st.sampled_from(AXES), st.sampled_from((4, 5, 6, 8)), st.sampled_from(sorted(DTYPES))
CASES = [(axis, bits) for axis in AXES for bits in (4, 5, 6, 8)]


def encoded(coder: QuantisedCoder, rows: torch.Tensor, shape: SlabShape) -> torch.Tensor:
    slab = torch.full((coder.size_bytes(shape),), 255, dtype=torch.uint8)
    assert coder.encode(rows, slab, shape) == len(slab)
    return slab


def decoded(coder: QuantisedCoder, slab: torch.Tensor, held: int, shape: SlabShape) -> torch.Tensor:
    rows = torch.full((shape.heads, held, shape.dim), math.nan, dtype=DTYPES[shape.dtype])
    coder.decode(slab, rows, shape)
    return rows


def stats_shape(axis: Axis, shape: SlabShape) -> tuple[int, int, int]:
    groups = (-(-shape.rows // GROUP), shape.dim) if axis == "per_channel" else (shape.rows, -(-shape.dim // GROUP))
    return (shape.heads, *groups)


def stats_of(slab: torch.Tensor, axis: Axis, shape: SlabShape) -> tuple[torch.Tensor, torch.Tensor]:
    count = math.prod(stats_shape(axis, shape))
    scales, minima = slab[: 4 * count].clone().view(torch.float16).view(2, *stats_shape(axis, shape))
    return scales, minima


def steps(slab: torch.Tensor, axis: Axis, held: int, shape: SlabShape) -> torch.Tensor:
    """Return the step of every true element, read from the slab independently of the coder."""
    scales = stats_of(slab, axis, shape)[0].double()
    if axis == "per_channel":
        return scales.repeat_interleave(GROUP, dim=1)[:, :held]
    return scales[:, :held].repeat_interleave(GROUP, dim=2)[:, :, : shape.dim]


@settings(deadline=None, max_examples=80)
@given(
    axes, bit_counts, dtypes, st.integers(1, 200), st.integers(0, 70), st.sampled_from((1, 5, 64, 65, 130)),
    st.floats(-14, 12), st.floats(-14, 12), st.integers(0, 2**31),
)  # fmt: skip
def test_error_is_at_most_half_a_step(  # noqa: PLR0917
    axis: Axis, bits: int, dtype: str, held: int, padding: int, dim: int, mean: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = SlabShape(2, held + padding, dim, dtype)
    rows = 2.0**mean + 2.0**spread * torch.randn((2, held, dim), generator=generator)
    rows = rows.clamp(-MAX_ABSOLUTE, MAX_ABSOLUTE).to(DTYPES[dtype])
    coder = QuantisedCoder(bits=bits, axis=axis)
    slab = encoded(coder, rows, shape)
    back = decoded(coder, slab, held, shape).double()
    # Half a step, float32's rounding (a 16th of a step), then the rounding of the cache's own dtype.
    bound = steps(slab, axis, held, shape) * (1 / 2 + 1 / 16)
    bound = (
        bound + torch.finfo(DTYPES[dtype]).eps * (rows.double().abs() + bound) + torch.finfo(torch.float16).tiny / 2**10
    )
    assert bool(((back - rows.double()).abs() <= bound).all())


@settings(deadline=None, max_examples=60)
@given(axes, bit_counts, st.integers(1, 130), st.floats(-10, 10), st.integers(0, 2**31))
def test_a_step_is_hardly_more_than_the_groups_range_needs(
    axis: Axis, bits: int, held: int, spread: float, seed: int
) -> None:
    shape = SlabShape(1, held, 64, "float32")
    rows = 2.0**spread * torch.randn((1, held, 64), generator=torch.Generator().manual_seed(seed))
    slab = encoded(QuantisedCoder(bits=bits, axis=axis), rows, shape)
    scales = stats_of(slab, axis, shape)[0].double()
    for index in range(scales.shape[1]):
        group = rows[0, index * GROUP : (index + 1) * GROUP] if axis == "per_channel" else rows[0, index].unsqueeze(1)
        low, high = group.amin(0).double(), group.amax(0).double()
        wanted = (high - low) / (2**bits - 1)
        # What rounding outwards may add: 2^-10 of the step, 1.5 x 2^-10 of the minimum, and a few of fp16's smallest.
        most = wanted * 1.002 + low.abs() * 1.6e-3 / (2**bits - 1) + 3 * 2.0**-24
        assert bool((scales[0, index] <= most).all())


@pytest.mark.parametrize(("axis", "bits"), CASES)
@pytest.mark.parametrize("element", [0.0, -0.0])
def test_zero_rows_stay_zero(axis: Axis, bits: int, element: float) -> None:
    shape = SlabShape(1, 70, 70, "bfloat16")
    coder = QuantisedCoder(bits=bits, axis=axis)
    rows = torch.full((1, 70, 70), element, dtype=torch.bfloat16)
    assert not decoded(coder, encoded(coder, rows, shape), 70, shape).any()


@pytest.mark.parametrize(("axis", "bits"), CASES)
def test_length_does_not_depend_on_contents_or_on_the_true_rows(axis: Axis, bits: int) -> None:
    shape = SlabShape(2, 130, 33, "float32")
    coder = QuantisedCoder(bits=bits, axis=axis)
    rows = torch.randn(2, 130, 33)
    assert {len(encoded(coder, rows[:, :held] * scale, shape)) for held in (0, 1, 64, 130) for scale in (0, 1, 99)} == {
        coder.size_bytes(shape)
    }


@pytest.mark.parametrize(("axis", "bits"), CASES)
def test_padding_is_zero_bytes_and_does_not_widen_a_group(axis: Axis, bits: int) -> None:
    shape, alone = SlabShape(2, 192, 16, "float32"), SlabShape(2, 5, 16, "float32")
    coder = QuantisedCoder(bits=bits, axis=axis)
    rows = 100 + torch.rand(2, 5, 16)
    slab = encoded(coder, rows, shape)
    used = 1 if axis == "per_channel" else 5
    for stats, wanted in zip(
        stats_of(slab, axis, shape), stats_of(encoded(coder, rows, alone), axis, alone), strict=True
    ):
        assert torch.equal(stats[:, :used], wanted)
        assert not stats[:, used:].view(torch.int16).any()
    assert torch.equal(decoded(coder, slab, 5, shape), decoded(coder, encoded(coder, rows, alone), 5, alone))


def test_groups_never_cross_a_range() -> None:
    assert RANGE_TOKENS % GROUP == 0


@pytest.mark.parametrize(("axis", "bits"), CASES)
def test_a_group_depends_on_its_own_rows_only(axis: Axis, bits: int) -> None:
    shape = SlabShape(1, 3 * GROUP, 16, "float32")
    coder = QuantisedCoder(bits=bits, axis=axis)
    rows = torch.randn(1, 3 * GROUP, 16)
    before = decoded(coder, encoded(coder, rows, shape), 3 * GROUP, shape)
    rows[:, GROUP : 2 * GROUP] *= 1000
    after = decoded(coder, encoded(coder, rows, shape), 3 * GROUP, shape)
    changed = (before != after).any(dim=2)[0]
    assert changed[GROUP : 2 * GROUP].any()
    assert not changed[:GROUP].any()
    assert not changed[2 * GROUP :].any()


@pytest.mark.parametrize(("axis", "bits"), CASES)
@pytest.mark.parametrize("element", [math.nan, math.inf, -math.inf, 40_000.0, -40_000.0])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_what_is_not_finite_or_too_large_is_refused_on_packing(
    axis: Axis, bits: int, element: float, dtype: str
) -> None:
    shape = SlabShape(2, 66, 66, dtype)
    coder = QuantisedCoder(bits=bits, axis=axis)
    for at in ((0, 0, 0), (1, 65, 65)):
        rows = torch.zeros((2, 66, 66), dtype=DTYPES[dtype])
        rows[at] = element
        with pytest.raises(CodecError, match="lossless"):
            encoded(coder, rows, shape)


@pytest.mark.parametrize(("axis", "bits"), CASES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 65_504.0])
def test_scales_that_are_not_finite_are_refused_on_arrival(axis: Axis, bits: int, which: int, value: float) -> None:
    shape = SlabShape(1, 66, 66, "float16")
    coder = QuantisedCoder(bits=bits, axis=axis)
    slab = encoded(coder, torch.randn(1, 66, 66).half(), shape)
    count = math.prod(stats_shape(axis, shape))
    slab[: 4 * count].view(torch.float16).view(2, count)[which, count - 1] = value
    with pytest.raises(LayoutMismatchError, match="scale or minimum"):
        decoded(coder, slab, 66, shape)


@pytest.mark.parametrize(("axis", "bits"), CASES)
def test_a_negative_scale_is_refused_on_arrival(axis: Axis, bits: int) -> None:
    shape = SlabShape(1, 4, 4, "float32")
    coder = QuantisedCoder(bits=bits, axis=axis)
    slab = encoded(coder, torch.randn(1, 4, 4), shape)
    slab[:2].view(torch.float16)[0] = -1
    with pytest.raises(LayoutMismatchError, match="scale or minimum"):
        decoded(coder, slab, 4, shape)


@settings(deadline=None, max_examples=60)
@given(axes, bit_counts, dtypes, st.integers(0, 2**31))
def test_arbitrary_bytes_give_finite_rows_or_are_refused(axis: Axis, bits: int, dtype: str, seed: int) -> None:
    shape = SlabShape(1, 3, 5, dtype)
    coder = QuantisedCoder(bits=bits, axis=axis)
    generator = torch.Generator().manual_seed(seed)
    slab = torch.randint(0, 256, (coder.size_bytes(shape),), dtype=torch.uint8, generator=generator)
    slab[1 : 4 * math.prod(stats_shape(axis, shape)) : 2] &= 0x7B
    try:
        rows = decoded(coder, slab, 3, shape)
    except LayoutMismatchError:
        return
    assert bool(rows.isfinite().all())


@pytest.mark.parametrize(("axis", "bits"), CASES)
def test_any_set_bit_in_padding_is_refused(axis: Axis, bits: int) -> None:
    shape, held = SlabShape(1, GROUP + 6, 2, "float32"), GROUP
    coder = QuantisedCoder(bits=bits, axis=axis)
    honest = encoded(coder, torch.randn(1, held, 2), shape)
    true_bits = held * 2 * bits + 2 * 16 * (2 if axis == "per_channel" else held)
    refused = 0
    for bit in range(8 * len(honest)):
        slab = honest.clone()
        slab[bit // 8] ^= 1 << bit % 8
        try:
            decoded(coder, slab, held, shape)
        except LayoutMismatchError as error:
            refused += "padding" in str(error)
    assert refused == 8 * len(honest) - true_bits


def test_scratch_is_zeroed_by_wipe() -> None:
    shape = SlabShape(1, 8, 8, "float32")
    coder = QuantisedCoder(bits=4, axis="per_token")
    encoded(coder, torch.randn(1, 8, 8), shape)
    scratch = (coder._floats, coder._codes)
    assert all(part.any() for part in scratch)
    coder.wipe()
    assert not any(part.any() for part in scratch)
