"""The device half: a vector -> masked numbers -> the cloud's product -> the true one, checked; on the device.

`linear` is a callable of `model.layerwise`. Attention, norms and the head stay here. A wrong product ends the session
and destroys the pool, because a cloud that sees a rejection learns something of the checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import AuthenticationError, CryptoParameterError, MasksExhaustedError, TruncatedError
from splitinfer.masking.fixed_point import fixed_vector
from splitinfer.masking.pool import Mask, MaskPool
from splitinfer.masking.ring import MASK_BITS, centred, from_word_bytes, to_mask_bytes
from splitinfer.rounds import Channel, Exchange, Operation, Traffic

__all__ = ["MaskedDevice"]

Rows: TypeAlias = NDArray[np.floating[Any]]
_MASK = np.uint64((1 << MASK_BITS) - 1)


class MaskedDevice:
    """One session; a context manager. Masks are reserved `block` at a time; what is left of a block is skipped.

    Raises MasksExhaustedError where no mask is left, or the cloud saw more of this pool than the pool says.
    """

    def __init__(self, pool: MaskPool, exchange: Exchange, *, block: int = 8) -> None:
        self._pool = pool
        self._block = block
        self._secrets = pool.secrets()
        self._channel = Channel(exchange)
        self._numbers = iter(range(0))
        self._mask: Mask | None = None
        self._is_open = True
        with self._session():
            self._open()

    def __enter__(self) -> MaskedDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def traffic(self) -> Traffic:
        """Return what was sent and received so far."""
        return self._channel.traffic

    def close(self) -> None:
        """Drop masks and checks. Idempotent."""
        self._is_open, self._mask, self._secrets = False, None, {}

    def linear(self, layer: int, name: str, vector: Rows) -> Rows:
        """Return matrix `name` of a layer times a vector, both rounded to 16 bits.

        Raises CryptoParameterError for an unknown matrix or values that are not finite, MasksExhaustedError where no
        mask is left, AuthenticationError for a wrong product, and whatever the exchange raises.
        """
        with self._session():
            return self._linear(layer, Operation.__members__.get(name.upper(), Operation.OPEN), vector)

    @contextmanager
    def _session(self) -> Iterator[None]:
        if not self._is_open:
            raise CryptoParameterError("this session's masks are gone; open a new session")
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, AuthenticationError):
                self._pool.discard()
            raise

    def _open(self) -> None:
        used = self._pool.used
        stated = {"version": 1, "pool_id": self._pool.pool_id, "weights_sha256": self._pool.weights_sha256}
        (seen,) = self._channel.ask(Operation.OPEN, (json.dumps(stated).encode(),), expected=1)
        if len(seen) != 8:
            raise TruncatedError(f"the cloud's mark takes {len(seen)} bytes, expected 8")
        if int.from_bytes(seen, "big") > used:
            raise MasksExhaustedError(
                f"the cloud saw more masks of this pool than the {used} that it says are used: this machine was put "
                "back; remove the pool and run `splitinfer masks prepare`"
            )

    def _linear(self, layer: int, operation: Operation, vector: Rows) -> Rows:
        place = self._pool.layout.places.get((layer, operation))
        if place is None:
            raise CryptoParameterError(f"the mask pool has no {operation.name.lower()} matrix of layer {layer}")
        integers, step = fixed_vector(vector)
        if integers.shape != (place.inputs,):
            raise CryptoParameterError(f"an input has shape {integers.shape}, expected ({place.inputs},)")
        mask = self._current(layer, operation)
        masked = (integers.view(np.uint64) + mask.words[place.input_at :][: place.inputs]) & _MASK
        blobs = (mask.number.to_bytes(8, "big"), to_mask_bytes(masked))
        (reply,) = self._channel.ask(operation, blobs, layer=layer, expected=1)
        product = from_word_bytes(reply, count=place.outputs)
        secrets = self._secrets[layer, operation]
        secrets.checks.require(product, masked)
        true = centred(product - mask.products[place.output_at :][: place.outputs])
        result: Rows = true * secrets.scale * step
        return result

    def _current(self, layer: int, operation: Operation) -> Mask:
        """Return the mask of this token; a matrix that comes round again takes the next one."""
        if self._mask is None or self._channel.starts_step(operation, layer=layer):
            number = next(self._numbers, None)
            if number is None:
                self._numbers = iter(self._pool.reserve(self._block))
                number = next(self._numbers)
            self._mask = self._pool.take(number)
        return self._mask
