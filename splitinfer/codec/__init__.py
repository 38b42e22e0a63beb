"""Tensors <-> bytes: a cache, finished or growing, -> PackedCache on one side, slabs -> CacheSnapshot on the other.

`CODECS` is a closed table: a codec id that is not in it is refused, never looked up elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from splitinfer import schedule
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec.first_rows import FirstRowsCoder
from splitinfer.codec.layers import CacheSource, Coders, MakeCoder, Slabs, SnapshotSource, TensorSlabs
from splitinfer.codec.lossless import LosslessCoder
from splitinfer.codec.packed import FixedPacked, VariablePacked
from splitinfer.codec.quantised import GROUP, Axis, QuantisedCoder, require_carriable
from splitinfer.codec.raw import RawCoder
from splitinfer.codec.sinks import CacheSink
from splitinfer.codec.transform import LEVELS, Artefact, TransformSlabs
from splitinfer.errors import ArtefactError, LayoutMismatchError, UnknownCodecError
from splitinfer.handoff import CacheLayout

__all__ = ["CODECS", "UNCALIBRATED", "Codec", "move", "pack", "sink", "size_bytes"]


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the table: its coders for keys and values, and whether what arrives is bit for bit what was packed.

    What `is_calibrated` has no coders of its own: it needs an artefact, made for the model.
    """

    keys: MakeCoder
    values: MakeCoder
    is_exact: bool
    is_variable: bool = False
    is_calibrated: bool = False

    def coders(self) -> Coders:
        """Make coders with their own scratch memory."""
        return Coders.make(self.keys, self.values)


def _quantised(key_bits: int, value_bits: int) -> Codec:
    # Keys get the bits: at 4 bits they cost 13 times the divergence that values cost.
    def coder(bits: int, axis: Axis) -> MakeCoder:
        return partial(QuantisedCoder, bits=bits, axis=axis)

    return Codec(coder(key_bits, "per_channel"), coder(value_bits, "per_token"), is_exact=False)


def _by_channel(key_bits: int, value_bits: int) -> Codec:
    # Long groups pay for the values' fifth bit. Apart from first rows they lie in as narrow a range as short ones.
    def coder(bits: int) -> MakeCoder:
        return lambda: FirstRowsCoder(QuantisedCoder(bits=bits, axis="per_channel", group=2 * GROUP))

    return Codec(coder(key_bits), coder(value_bits), is_exact=False)


CODECS: dict[str, Codec] = {
    "raw": Codec(RawCoder, RawCoder, is_exact=True),
    "lossless": Codec(LosslessCoder, LosslessCoder, is_exact=True, is_variable=True),
    "q8": _quantised(8, 8),
    "k8v4": _quantised(8, 4),
    "k6v4": _by_channel(6, 5),
    "q4": _quantised(4, 4),
    # What no group of the artefact holds is carried as it is.
    **{name: Codec(RawCoder, RawCoder, is_exact=False, is_calibrated=True) for name in LEVELS},
}
UNCALIBRATED = tuple(name for name, row in CODECS.items() if not row.is_calibrated)


def pack(
    cache: CacheSnapshot | GrowingCache,
    *,
    codec: str,
    padded_tokens: int,
    base_tokens: int = 0,
    is_shared: bool = False,
    artefact: Artefact | None = None,
) -> FixedPacked | VariablePacked:
    """Pack a cache with a named codec; with `base_tokens`, only what a holder of so many first tokens lacks.

    `wipe` of what is returned wipes the cache too, unless the cache `is_shared`: somebody else keeps it then.

    A cache that still grows is packed as it comes, slab by slab. Codecs of variable length wait until it is finished,
    and lossy ones where nothing of it may leave earlier; else those find out late what they cannot carry.
    `artefact` is needed by the codecs that are calibrated.
    Raises UnknownCodecError, ArtefactError for a codec whose artefact is missing or made for other layers,
    LayoutMismatchError for too small a padding, CodecError for elements that a lossy codec
    cannot carry (NaN, infinity, and beyond +-32,768), and what the prefill of a growing cache raises.
    """
    row = _find(codec)
    source: CacheSource = cache if isinstance(cache, GrowingCache) else SnapshotSource(cache)
    if isinstance(cache, GrowingCache) and (row.is_variable or not (row.is_exact or cache.leaves_early)):
        cache = cache.snapshot()
    if isinstance(cache, CacheSnapshot) and not row.is_exact:
        # Before the first slab, since a stream that has begun can only break off.
        require_carriable(cache)
    packed = VariablePacked if row.is_variable else FixedPacked
    slabs = _slabs(codec, source.layout, artefact)
    return packed(source, slabs, padded_tokens=padded_tokens, base_tokens=base_tokens, is_shared=is_shared)


def sink(
    layout: CacheLayout,
    *,
    codec: str,
    true_tokens: int,
    padded_tokens: int,
    coded_bytes: int | None = None,
    base: CacheSnapshot | None = None,
    artefact: Artefact | None = None,
) -> CacheSink:
    """Make the sink of a named codec; its `finish()` returns a CacheSnapshot of its own.

    `coded_bytes` is the announced length of all slabs, of a codec whose lengths vary; None for the others. `base` is
    the cache of the first tokens where only the rest arrives; it is copied from, and not changed. Raises
    UnknownCodecError, ArtefactError as `pack` does, and LayoutMismatchError for impossible counts.
    """
    row = _find(codec)
    if row.is_variable:
        schedule.require_coded_bytes(coded_bytes, layout, padded_tokens, base.true_tokens if base else 0)
    elif coded_bytes is not None:
        raise LayoutMismatchError(f"the length of a cache in codec {codec!r} follows from its layout")
    return CacheSink(
        layout,
        _slabs(codec, layout, artefact),
        true_tokens=true_tokens,
        padded_tokens=padded_tokens,
        coded_bytes=coded_bytes,
        base=base,
    )


def size_bytes(
    layout: CacheLayout, *, codec: str, padded_tokens: int, base_tokens: int = 0, artefact: Artefact | None = None
) -> int:
    """Return the bytes of all slabs, or the most that they can have. Raises UnknownCodecError and ArtefactError."""
    slabs = _slabs(codec, layout, artefact)
    return sum(map(slabs.size_bytes, slabs.specs(padded_tokens, base_tokens)))


def move(snapshot: CacheSnapshot, *, codec: str, artefact: Artefact | None = None) -> CacheSnapshot:
    """Return what a recipient gets of a snapshot: packed, and received again. Raises as `pack` does."""
    tokens = snapshot.true_tokens
    padded = schedule.pad_tokens(tokens)
    packed = pack(snapshot, codec=codec, padded_tokens=padded, artefact=artefact)
    announced = packed.size_bytes if packed.is_variable else None
    target = sink(
        snapshot.layout,
        codec=codec,
        true_tokens=tokens,
        padded_tokens=padded,
        coded_bytes=announced,
        artefact=artefact,
    )
    data, at = b"".join(map(bytes, packed.slabs())), 0
    for size in target.sizes():
        target.slab()[:] = data[at : at + size]
        at += size
    return target.finish()


def _find(codec: str) -> Codec:
    if codec not in CODECS:
        raise UnknownCodecError(f"codec {codec!r} is unknown; write one of {', '.join(CODECS)}")
    return CODECS[codec]


def _slabs(codec: str, layout: CacheLayout, artefact: Artefact | None) -> Slabs:
    """Make a codec's slabs, with scratch memory of their own."""
    row = _find(codec)
    if not row.is_calibrated:
        return TensorSlabs(layout, row.coders())
    if artefact is None:
        raise ArtefactError(
            f"codec {codec} needs an artefact of this model; run `splitinfer model calibrate SOURCE --corpus FILE`"
        )
    return TransformSlabs(artefact, codec, layout)
