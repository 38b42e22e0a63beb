"""The sealed manifests, first inside their streams: what a request carries and asks, what a reply brings; both sides.

Everything about the model, the prompt's size, the policy and the sampling is sealed. Binary values are lower-case
hexadecimal, non-integers decimal strings.
"""

from __future__ import annotations

import itertools
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from splitinfer import handoff, schedule
from splitinfer.errors import ManifestError, UsageError
from splitinfer.sealing.encoding import prefixed
from splitinfer.sealing.wire import Count, Decimals, Hex16, Hex32, Short, Version, WireModel

__all__ = [
    "MANIFEST_REGION_BYTES",
    "CacheWire",
    "LayerWire",
    "ModelWire",
    "NumericsWire",
    "RefusalWire",
    "RequestManifest",
    "ResponseManifest",
    "SamplingWire",
    "SessionWire",
    "TensorWire",
    "TokensWire",
    "cache_bytes",
    "manifest_region",
]

MANIFEST_REGION_BYTES = 4096

Dims = Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=4)]


# As many as 2^20 chunks of 1 MiB hold.
CodedBytes = Annotated[int, Field(ge=1, le=2**40)]


class ModelWire(WireModel):
    """The three digests of a model."""

    weights_sha256: Hex32
    config_sha256: Hex32
    tokenizer_sha256: Hex32

    @classmethod
    def of(cls, identity: handoff.ModelIdentity) -> ModelWire:
        """Convert."""
        return cls(
            weights_sha256=identity.weights_sha256,
            config_sha256=identity.config_sha256,
            tokenizer_sha256=identity.tokenizer_sha256,
        )


class NumericsWire(WireModel):
    """See handoff.Numerics."""

    torch: Short
    device: Short
    dtype: Short
    attention: Short
    threads: Count

    @classmethod
    def of(cls, numerics: handoff.Numerics) -> NumericsWire:
        """Convert."""
        return cls(
            torch=numerics.torch,
            device=numerics.device,
            dtype=numerics.dtype,
            attention=numerics.attention,
            threads=numerics.threads,
        )

    def numerics(self) -> handoff.Numerics:
        """Convert back."""
        return handoff.Numerics(self.torch, self.device, self.dtype, self.attention, self.threads)


class TokensWire(WireModel):
    """How many tokens the stream carries and to how many they are padded."""

    true: Annotated[int, Field(ge=1, le=2**24)]
    padded: Annotated[int, Field(ge=1, le=2**24)]


class TensorWire(WireModel):
    """See handoff.TensorLayout."""

    name: handoff.TensorName
    dtype: Literal["float32", "bfloat16", "float16"]
    rows: handoff.RowRule
    before: Dims
    after: Dims

    @classmethod
    def of(cls, tensor: handoff.TensorLayout) -> TensorWire:
        """Convert."""
        return cls(
            name=tensor.name,
            dtype=tensor.dtype,  # type: ignore[arg-type]
            rows=tensor.rows,
            before=list(tensor.before),
            after=list(tensor.after),
        )

    def tensor(self) -> handoff.TensorLayout:
        """Convert back."""
        return handoff.TensorLayout(self.name, self.dtype, self.rows, tuple(self.before), tuple(self.after))


class LayerWire(WireModel):
    """See handoff.LayerLayout; `count` neighbouring layers are alike."""

    count: Annotated[int, Field(ge=1, le=4096)]
    kind: handoff.LayerKind
    window: Count
    stride: Count
    tensors: Annotated[list[TensorWire], Field(max_length=16)]

    def layer(self) -> handoff.LayerLayout:
        """Convert back to one of the layers."""
        return handoff.LayerLayout(self.kind, tuple(wire.tensor() for wire in self.tensors), self.window, self.stride)


class CacheWire(WireModel):
    """A cache layout as runs of equal layers."""

    layers: Annotated[list[LayerWire], Field(max_length=4096)]

    @classmethod
    def of(cls, layout: handoff.CacheLayout) -> CacheWire:
        """Convert, joining equal neighbours."""
        return cls(
            layers=[
                LayerWire(
                    count=sum(1 for _ in run),
                    kind=layer.kind,
                    window=layer.window,
                    stride=layer.stride,
                    tensors=[TensorWire.of(tensor) for tensor in layer.tensors],
                )
                for layer, run in itertools.groupby(layout.layers)
            ]
        )

    def layout(self) -> handoff.CacheLayout:
        """Convert back."""
        return handoff.CacheLayout(tuple(layer for run in self.layers for layer in [run.layer()] * run.count))


class SamplingWire(WireModel):
    """See handoff.SamplingParams; non-integers and the 63-bit seed are decimal strings."""

    max_new_tokens: Annotated[int, Field(ge=1, le=2**20)]
    temperature: Decimals
    top_p: Decimals
    top_k: Count
    seed: Decimals
    stop: Annotated[list[Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=16, repr=False)]

    @classmethod
    def of(cls, params: handoff.SamplingParams) -> SamplingWire:
        """Convert; floats are written so that reading them back gives the same float.

        Raises UsageError for values outside what the wire can carry.
        """
        try:
            return cls(
                max_new_tokens=params.max_new_tokens,
                temperature=format(Decimal(repr(params.temperature)), "f"),
                top_p=format(Decimal(repr(params.top_p)), "f"),
                top_k=params.top_k,
                seed=str(params.seed),
                stop=[text.encode().decode() for text in params.stop],
            )
        except (ValidationError, UnicodeEncodeError, InvalidOperation):
            raise UsageError(
                "sampling takes numbers of at most 20 digits before and after the point, top_k below 2^31, "
                "max_new_tokens up to 2^20, and stop strings of at most 1,024 characters"
            ) from None

    def params(self) -> handoff.SamplingParams:
        """Convert back; raises ManifestError."""
        try:
            return handoff.SamplingParams(
                max_new_tokens=self.max_new_tokens,
                temperature=float(Decimal(self.temperature)),
                top_p=float(Decimal(self.top_p)),
                top_k=self.top_k,
                seed=int(self.seed),
                stop=tuple(self.stop),
            )
        except (InvalidOperation, ValueError) as error:
            raise ManifestError("the sampling parameters are not numbers") from error


class SessionWire(WireModel):
    """Where the transfer stands in its session; a first turn has no parent.

    `base_tokens` are there already: at the cloud in a later turn, at the device where public text is prefilled again.
    `keep` lets the cloud keep the cache for the next turn.
    """

    session_id: Hex16
    turn: Count
    parent_root: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
    base_tokens: Count
    keep: bool


class RequestManifest(WireModel):
    """The first thing inside a request stream: what it carries and what is asked."""

    version: Version
    kind: Literal["prefill", "rows", "decode", "close", "rounds"]
    protection: Short
    codec: Short
    artefact_sha256: Hex32 | None
    pad: Short
    policy_sha256: Hex32
    log_checkpoint: Hex32
    model: ModelWire
    numerics: NumericsWire
    session: SessionWire
    public: bool
    tokens: TokensWire
    steps: Annotated[list[tuple[Count, Count]], Field(max_length=65536)]
    cache: CacheWire | None
    coded_bytes: CodedBytes | None
    last_token: Count | None
    sampling: SamplingWire | None


class RefusalWire(WireModel):
    """Why the recipient refuses, sealed: a code of the error tree and the digests or counts that differ."""

    # Printable only: what the other side says ends up on a terminal.
    code: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
    fields: Annotated[
        dict[
            Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")],
            Annotated[str, StringConstraints(pattern=r"^[ -~]{0,128}$")],
        ],
        Field(max_length=16),
    ]


class ResponseManifest(WireModel):
    """The first thing inside a reply stream."""

    version: Version
    kind: Literal["cache", "tokens", "closed", "rounds", "refusal"]
    request_manifest_sha256: Hex32
    codec: Short
    artefact_sha256: Hex32 | None
    model: ModelWire | None
    numerics: NumericsWire | None
    tokens: TokensWire | None
    cache: CacheWire | None
    coded_bytes: CodedBytes | None
    frames: Count
    refusal: RefusalWire | None


def manifest_region(data: bytes, *, chunk_bytes: int) -> bytes:
    """Lay out a sealed manifest: 4-byte length, JSON, zeros up to a multiple of 4,096 and of the chunk size.

    Slabs after it then start at a chunk boundary and can be sealed and opened in place.
    """
    unit = max(MANIFEST_REGION_BYTES, chunk_bytes)
    body = prefixed(data)
    return body.ljust(-(-len(body) // unit) * unit, b"\x00")


def cache_bytes(layout: handoff.CacheLayout, padded_tokens: int) -> int:
    """Return the bytes of all slabs of a cache in codec `raw`."""
    return sum(slab.size_bytes for slab in schedule.slabs(layout, padded_tokens))
