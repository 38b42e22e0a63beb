"""`masked`: each step's large matrices are applied by the cloud to one-time-masked numbers; on the device.

Prefill, cache, attention, norms and a tied head stay here. A token costs one mask of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.device import Device
from splitinfer.errors import MasksExhaustedError, ModelMismatchError, UsageError
from splitinfer.handoff import SamplingParams
from splitinfer.masking.device import MaskedDevice
from splitinfer.masking.pool import MaskPool
from splitinfer.masking.ring import MASK_BYTES
from splitinfer.model.layerwise import LayerwiseModel, LocalAttention, Rows, cached_rows
from splitinfer.model.stepwise import Step
from splitinfer.rounds import Exchange

__all__ = ["MaskedWork"]

_RECORD_BYTES = 128
_OPENING_BYTES = 4096


@dataclass(frozen=True, slots=True)
class MaskedWork:
    """One run; implements `work.Work`."""

    model: LayerwiseModel = field(repr=False)
    pool: MaskPool
    reserve: int
    new_tokens: int
    packing: str = "z2-48"
    tokens_bucket: int = 0
    prefills: bool = False

    @classmethod
    def of(cls, device: Device, params: SamplingParams) -> MaskedWork:
        """Open the pool; raises UnsupportedModelError, StateError, ModelMismatchError, MasksExhaustedError."""
        if device.masks is None:
            raise UsageError("this session has no mask pool; open it with a policy of mode masked")
        model, pool = device.engine.layerwise(), device.masks()
        if pool.weights_sha256 != device.engine.identity.weights_sha256:
            raise ModelMismatchError("the mask pool was made for other weights; prepare a pool for this model")
        if not pool.left:
            raise MasksExhaustedError("no one-time mask is left; run `splitinfer masks prepare`, then ask again")
        return cls(model, pool, device.policy.masked.reserve, params.max_new_tokens)

    @property
    def rounds_bytes(self) -> int:
        """Return the most bytes that go up."""
        places = self.pool.layout.places
        token = MASK_BYTES * self.pool.layout.inputs + len(places) * _RECORD_BYTES
        return _OPENING_BYTES + self.new_tokens * token

    @contextmanager
    def begin(self, exchange: Exchange, cache: CacheSnapshot | None) -> Iterator[Step]:
        """Open the session over the pool and lend the step."""
        if cache is None:
            raise UsageError("there is no cache of the prompt to go on from")
        attention = LocalAttention(len(self.model.layers))
        for layer, (keys, values) in enumerate(cached_rows(cache)):
            # Copies: the snapshot is wiped, or goes on in another run.
            attention.load(layer, keys.copy(), values.copy())
        with MaskedDevice(self.pool, exchange, block=min(self.reserve, self.new_tokens)) as half:

            def step(token_id: int, position: int) -> Rows:
                return self.model.step(token_id, position, attend=attention.attend, linear=half.linear)

            yield step
