"""The device half: keys, uploads, decryption; attention and linear layers over an exchange; on the device.

`attend` and `linear` are the callables of `model.layerwise`. Any fault ends the session: the keys are dropped before
the error is raised, and nothing that was decrypted goes back, so that the cloud sees an ordinary close.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import CryptoParameterError, LayoutMismatchError
from splitinfer.homomorphic.attention import DeviceAttention
from splitinfer.homomorphic.keys import SessionKeys
from splitinfer.homomorphic.linear_plan import LinearPlan, LinearShape, pack_input, plan_linear, unpack_result
from splitinfer.homomorphic.opening import Opening
from splitinfer.homomorphic.parameters import parameters_for
from splitinfer.homomorphic.planning import AttentionPlan, AttentionShape, plan_attention
from splitinfer.homomorphic.ranges import normalised, require_finite
from splitinfer.rounds import Channel, Exchange, Operation, Traffic

__all__ = ["DeviceHalf", "LinearShapes"]

Rows: TypeAlias = NDArray[np.floating[Any]]
LinearShapes: TypeAlias = Mapping[tuple[int, Operation], LinearShape]
"""The matrices that the cloud applies, by layer and operation."""


class DeviceHalf:
    """One session's device half; a context manager. Opening it makes the keys and sends the public ones.

    `expected_tokens` is about how many tokens the cloud will hold, unless a `plan` was made for them already; `linears`
    are the matrices that it applies. Raises
    CryptoParameterError for an unknown profile, and whatever the exchange raises.
    """

    def __init__(
        self,
        shape: AttentionShape,
        exchange: Exchange,
        *,
        expected_tokens: int = 1,
        profile: str = "balanced",
        is_public: bool = False,
        linears: LinearShapes | None = None,
        plan: AttentionPlan | None = None,
    ) -> None:
        self._parameters = parameters_for(profile)
        slots = self._parameters.slots
        self._plan = plan or plan_attention(shape, slots=slots, tokens=expected_tokens, is_encrypted=not is_public)
        ordered = sorted((linears or {}).items())
        self._linears = {key: plan_linear(linear, slots=slots) for key, linear in ordered}
        steps = {*self._plan.steps, *(step for plan in self._linears.values() for step in plan.steps)}
        self._keys = SessionKeys(self._parameters, steps=steps, multiplies_ciphertexts=True)
        self._channel = Channel(exchange)
        self._attention = DeviceAttention(self._plan, self._parameters, self._keys, self._channel)
        with self._session():
            self._scales = self._open(len(steps))

    def __enter__(self) -> DeviceHalf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DeviceHalf({self._parameters.profile})"

    @property
    def plan(self) -> AttentionPlan:
        """Return how the cache is packed."""
        return self._plan

    @property
    def traffic(self) -> Traffic:
        """Return what was sent and received so far."""
        return self._channel.traffic

    def close(self) -> None:
        """Drop the keys. Idempotent."""
        self._keys.close()

    def load(self, layer: int, keys: Rows, values: Rows, *, is_public: bool = False) -> None:
        """Upload a prefix's rows [tokens, kv_heads, head_dim]; as `DeviceAttention.load`."""
        with self._session():
            self._attention.load(layer, keys, values, is_public=is_public)

    def keep(self, layer: int, keys: Rows, values: Rows) -> None:
        """Keep a prefix's last rows on the device; as `DeviceAttention.keep`."""
        with self._session():
            self._attention.keep(layer, keys, values)

    def seal_tail(self) -> None:
        """Encrypt and upload what is here in the clear; as `DeviceAttention.seal_tail`."""
        with self._session():
            self._attention.seal_tail()

    def attend(self, layer: int, query: Rows, key: Rows, value: Rows) -> Rows:
        """Return one token's attention output [heads, head_dim]; as `DeviceAttention.attend`."""
        with self._session():
            return self._attention.attend(layer, query, key, value)

    def linear(self, layer: int, name: str, vector: Rows) -> Rows:
        """Return matrix `name` of a layer times a vector, without bias.

        Raises CryptoParameterError for a matrix that the session did not announce or values that cannot be encoded,
        and whatever the exchange and its checks raise.
        """
        with self._session():
            return self._linear(layer, name, vector)

    @contextmanager
    def _session(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _open(self, steps: int) -> dict[tuple[int, Operation], Rows]:
        opening = Opening.of(self._parameters, self._plan, steps=steps, uses_linears=bool(self._linears))
        blobs = (opening.to_bytes(), *self._keys.public_blobs())
        found = self._channel.ask(Operation.OPEN, blobs, expected=len(self._linears))
        plans = self._linears.items()
        return {key: _scale(plan, blob) for (key, plan), blob in zip(plans, found, strict=True)}

    def _linear(self, layer: int, name: str, vector: Rows) -> Rows:
        key = (layer, Operation.__members__.get(name.upper(), Operation.OPEN))
        if key not in self._linears:
            raise CryptoParameterError(f"the session was opened without matrix {name!r} of layer {layer}")
        plan, parameters = self._linears[key], self._parameters
        rows, factor = normalised(require_finite("inputs of a linear layer", vector))
        blobs = tuple(self._keys.encrypt(slots, scale_bits=parameters.input_bits) for slots in pack_input(plan, rows))
        found = self._channel.ask(key[1], blobs, layer=layer, expected=plan.tables)
        bits = parameters.input_bits + parameters.weight_bits
        slots = np.array([self._keys.decrypt(blob, product_bits=bits) for blob in found])
        return unpack_result(plan, slots) * self._scales[key] * factor


def _scale(plan: LinearPlan, blob: bytes) -> Rows:
    """Read the factors of a matrix's rows; raises LayoutMismatchError for another number of them."""
    if len(blob) != 4 * plan.shape.outputs:
        raise LayoutMismatchError(f"the cloud's matrix has another shape than {plan.shape}")
    scale = np.frombuffer(blob, "<f4").astype(np.float64)
    if not np.all(np.isfinite(scale)):
        raise LayoutMismatchError("the factors of the cloud's matrix are not finite")
    return scale
