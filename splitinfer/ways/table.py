"""The closed table of how a run goes: trust mode -> way, each Run -> text pieces; on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from splitinfer.ways.cloud_decode import cloud_decode
from splitinfer.ways.cloud_prefill import cloud_prefill
from splitinfer.ways.local import local
from splitinfer.ways.noised import noised_decode, noised_prefill
from splitinfer.ways.rounds import in_rounds
from splitinfer.ways.run import Run
from trust_models.modes import TrustMode

__all__ = ["WAYS", "Way"]

Way = Callable[[Run], Iterator[str]]

WAYS: Mapping[TrustMode, Way] = MappingProxyType(
    {
        TrustMode.LOCAL: local,
        TrustMode.PUBLIC_PREFIX: cloud_prefill,
        TrustMode.SEALED_PREFILL: cloud_prefill,
        TrustMode.SEALED_DECODE: cloud_decode,
        TrustMode.NOISED_DECODE: noised_decode,
        TrustMode.NOISED_PREFILL: noised_prefill,
        TrustMode.HOMOMORPHIC: in_rounds,
        TrustMode.MASKED: in_rounds,
    }
)
