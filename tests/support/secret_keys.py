"""Looking for secret keys among what a cloud received."""

from __future__ import annotations

from collections.abc import Iterable

from tenseal import sealapi

from splitinfer.errors import SplitInferError
from splitinfer.homomorphic.parameters import parameters_for
from splitinfer.homomorphic.seal import load, make_context, to_bytes

CONTEXT = make_context(parameters_for("balanced"))


def secret_keys(blobs: Iterable[bytes]) -> list[int]:
    """Return the places of blobs that load as a secret key, or as a plaintext, which is what a secret key is inside."""
    found = []
    for place, blob in enumerate(blobs):
        for kind in (sealapi.SecretKey, sealapi.Plaintext):
            try:
                load(kind, CONTEXT, blob, limit_bytes=1 << 26)
            except SplitInferError:
                continue
            found.append(place)
            break
    return found


def planted() -> bytes:
    """Return a secret key as SEAL writes it."""
    return to_bytes(sealapi.KeyGenerator(CONTEXT).secret_key())
