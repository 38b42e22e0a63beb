"""One session's CKKS keys: Parameters and rotations -> SessionKeys; on the device only.

Nothing here writes the secret key anywhere. Uploads are symmetric encryptions, half of which is a seed; so are the
public keys. The keys live for one session.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import AuthenticationError, CryptoParameterError
from splitinfer.homomorphic.bindings import sealapi
from splitinfer.homomorphic.parameters import Parameters
from splitinfer.homomorphic.ranges import SLOT_LIMIT
from splitinfer.homomorphic.seal import (
    ciphertext_limit,
    encode,
    galois_element,
    load,
    make_context,
    product_scale,
    require_form,
    to_bytes,
)

__all__ = ["SessionKeys"]


class SessionKeys:
    """The secret key and what is done with it; `public_blobs` is all that leaves."""

    def __init__(self, parameters: Parameters, *, steps: Iterable[int], multiplies_ciphertexts: bool) -> None:
        self._parameters = parameters
        self._steps = tuple(sorted(set(steps)))
        self._multiplies_ciphertexts = multiplies_ciphertexts
        self._context = make_context(parameters)
        self._generator: Any = sealapi.KeyGenerator(self._context)
        self._encryptor: Any = sealapi.Encryptor(self._context, self._generator.secret_key())
        self._decryptor: Any = sealapi.Decryptor(self._context, self._generator.secret_key())
        self._encoder = sealapi.CKKSEncoder(self._context)

    def __repr__(self) -> str:
        return f"SessionKeys({self._parameters.profile})"

    def close(self) -> None:
        """Drop the keys; SEAL zeroes a secret key's memory when it frees it. Idempotent."""
        self._generator = self._encryptor = self._decryptor = None

    def public_blobs(self) -> tuple[bytes, bytes]:
        """Return Galois keys and relinearisation keys for the cloud, each empty where none is needed."""
        self._require_open()
        elements = [galois_element(step, self._parameters.ring_degree) for step in self._steps]
        galois = to_bytes(self._generator.create_galois_keys(elements)) if elements else b""
        multiply = to_bytes(self._generator.create_relin_keys()) if self._multiplies_ciphertexts else b""
        return galois, multiply

    def encrypt(self, slots: NDArray[np.complex128], *, scale_bits: int) -> bytes:
        """Encrypt complex slots [slots]; raises CryptoParameterError for values that the parameters cannot hold."""
        self._require_open()
        if not np.all(np.abs(slots) <= SLOT_LIMIT):
            raise CryptoParameterError(f"values to encrypt are not finite or above {SLOT_LIMIT:g}")
        return to_bytes(self._encryptor.encrypt_symmetric(encode(self._encoder, slots, scale_bits)))

    def decrypt(self, blob: bytes, *, product_bits: int) -> NDArray[np.complex128]:
        """Decrypt a returned product to complex slots [slots]; an empty blob is zero.

        Raises ManifestError for another context's ciphertext, LayoutMismatchError for one of another level or scale,
        AuthenticationError for one that decrypts to what no product can be: another key's, or damaged.
        """
        self._require_open()
        if not blob:
            return np.zeros(self._parameters.slots, np.complex128)
        limit = ciphertext_limit(self._parameters)
        ciphertext = load(sealapi.Ciphertext, self._context, blob, limit_bytes=limit)
        level = self._context.last_parms_id() if self._parameters.is_rescaled else self._context.first_parms_id()
        scale = product_scale(self._context, self._parameters, product_bits)
        require_form(ciphertext, parms_id=level, scale=scale)
        plaintext = sealapi.Plaintext()
        self._decryptor.decrypt(ciphertext, plaintext)
        slots = np.array(self._encoder.decode_complex(plaintext))
        if not np.all(np.abs(slots) <= SLOT_LIMIT):
            raise AuthenticationError
        return slots

    def _require_open(self) -> None:
        if self._decryptor is None:
            raise CryptoParameterError("this session's keys are gone; open a new session")
