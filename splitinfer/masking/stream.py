"""Masks from a cryptographic stream: pool key and mask number -> elements of Z_2^48; on the device.

AES-256 in counter mode under the pool's key, one stream of 2^64 blocks for every mask number. A mask covers one token:
the inputs of all matrices, in the order of the layout. The numbers are uniform: six bytes each, none rejected.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from splitinfer.masking.ring import MASK_BYTES, Words, from_mask_bytes

__all__ = ["mask"]


def mask(key: bytes, number: int, *, count: int) -> Words:
    """Return the `count` elements of mask `number`."""
    counter = number.to_bytes(8, "big") + bytes(8)
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    return from_mask_bytes(encryptor.update(bytes(MASK_BYTES * count)), count=count)
