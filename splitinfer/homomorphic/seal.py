"""The one place that touches SEAL's bindings: contexts, and objects <-> bytes with bounds; both sides.

`tenseal.sealapi` reads and writes paths only, so that bytes go through an anonymous file in memory. What comes from
the other side is decompressed here under a limit, and SEAL sees plain bytes whose length its head must state.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from splitinfer.errors import (
    CryptoParameterError,
    LayoutMismatchError,
    LimitExceededError,
    ManifestError,
    TruncatedError,
)
from splitinfer.homomorphic.bindings import sealapi
from splitinfer.homomorphic.parameters import Parameters, require_secure

__all__ = [
    "Ciphertext",
    "Context",
    "Plaintext",
    "ciphertext_limit",
    "encode",
    "galois_element",
    "keys_limit",
    "load",
    "make_context",
    "product_scale",
    "require_form",
    "to_bytes",
]

Context: TypeAlias = Any
Ciphertext: TypeAlias = Any
Plaintext: TypeAlias = Any
# seal/serialization.h: magic, head length, major, minor, compression, reserved, total length.
_HEAD = struct.Struct("<HBBBBHQ")
_MAGIC, _STORED, _ZSTD = 0xA15E, 0, 2
_SEAL_ERRORS = (RuntimeError, ValueError, IndexError, MemoryError, OverflowError)


def make_context(parameters: Parameters) -> Context:
    """Return SEAL's context, which checks the 128-bit limit once more; raises CryptoParameterError."""
    require_secure(parameters)
    chosen = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    chosen.set_poly_modulus_degree(parameters.ring_degree)
    chosen.set_coeff_modulus(sealapi.CoeffModulus.Create(parameters.ring_degree, list(parameters.modulus_bits)))
    context = sealapi.SEALContext(chosen, True, sealapi.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise CryptoParameterError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context


def galois_element(step: int, ring_degree: int) -> int:
    """Return the Galois element of a rotation; the bindings take elements where SEAL's own API takes steps."""
    return pow(3, step % (ring_degree // 2), 2 * ring_degree)


def product_scale(context: Context, parameters: Parameters, bits: int) -> float:
    """Return the scale of a returned product whose factors' scales make 2^bits."""
    if not parameters.is_rescaled:
        return 2.0**bits
    primes = context.first_context_data().parms().coeff_modulus()
    return 2.0**bits / float(primes[-1].value())


def ciphertext_limit(parameters: Parameters) -> int:
    """Return the most bytes that one ciphertext may take, compressed or not."""
    return 2 * len(parameters.modulus_bits) * parameters.ring_degree * 8 + 4096


def keys_limit(parameters: Parameters, keys: int) -> int:
    """Return the most bytes that this many Galois or relinearisation keys may take, compressed or not."""
    # SEAL stores a Galois key at an index up to the ring degree, with eight bytes for every index left out.
    return (keys + 1) * len(parameters.modulus_bits) * ciphertext_limit(parameters) + 16 * parameters.ring_degree


@contextmanager
def _anonymous_file() -> Iterator[tuple[int, str]]:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("splitinfer")
        try:
            yield handle, f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    with tempfile.NamedTemporaryFile() as file:
        yield file.fileno(), file.name


def to_bytes(value: Any) -> bytes:
    """Return SEAL's own bytes of a ciphertext, plaintext or public keys, compressed."""
    with _anonymous_file() as (handle, path):
        value.save(path)
        return os.pread(handle, os.fstat(handle).st_size, 0)


def load(kind: Any, context: Context, data: bytes, *, limit_bytes: int) -> Any:
    """Return an object of this SEAL class that is valid for the context, from bytes of the other side.

    `limit_bytes` bounds the bytes before and after decompression. Raises LimitExceededError, TruncatedError where the
    stated length is another, ManifestError where SEAL refuses the object: another context, another class, malformed.
    """
    plain = _stored(data, limit_bytes)
    value = kind()
    with _anonymous_file() as (handle, path):
        written = 0
        while written < len(plain):
            written += os.pwrite(handle, plain[written:], written)
        try:
            value.load(context, path)
        except _SEAL_ERRORS as error:
            raise ManifestError(f"the bytes are no {kind.__name__} of this session's parameters") from error
    return value


def _stored(data: bytes, limit_bytes: int) -> bytes:
    """Return the same object without compression."""
    if len(data) > limit_bytes:
        raise LimitExceededError(f"an object of {len(data)} bytes is above the limit of {limit_bytes}")
    if len(data) < _HEAD.size:
        raise TruncatedError(f"an object of {len(data)} bytes ends inside its head of {_HEAD.size}")
    magic, head, major, minor, compression, reserved, size = _HEAD.unpack_from(data)
    if magic != _MAGIC or head != _HEAD.size:
        raise ManifestError("the bytes do not begin as an object of SEAL does")
    if size != len(data):
        raise TruncatedError(f"an object states {size} bytes, but {len(data)} came")
    body = data[_HEAD.size :]
    if compression == _ZSTD:
        body = _decompressed(body, limit_bytes)
    elif compression != _STORED:
        raise ManifestError(f"compression {compression} is not one of {_STORED} (none) and {_ZSTD} (zstd)")
    return _HEAD.pack(magic, head, major, minor, _STORED, reserved, _HEAD.size + len(body)) + body


def _decompressed(body: bytes, limit_bytes: int) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=False)
    try:
        plain: bytes = reader.read(limit_bytes + 1)
    except zstandard.ZstdError as error:
        raise ManifestError("an object does not decompress") from error
    if len(plain) > limit_bytes:
        raise LimitExceededError(f"an object is above the limit of {limit_bytes} bytes when decompressed")
    return plain


def encode(encoder: Any, values: NDArray[np.complex128], scale_bits: int) -> Plaintext:
    """Return complex slots as a plaintext; raises CryptoParameterError for values that do not fit, never wraps."""
    if not np.all(np.isfinite(values)):
        raise CryptoParameterError("values to encode are not finite; the model's activations overflow")
    plaintext = sealapi.Plaintext()
    try:
        encoder.encode(values.tolist(), 2.0**scale_bits, plaintext)
    except (ValueError, RuntimeError) as error:
        raise CryptoParameterError("values to encode are above what the parameters hold") from error
    return plaintext


def require_form(ciphertext: Ciphertext, *, parms_id: Any, scale: float) -> None:
    """Raise LayoutMismatchError for a ciphertext of another level, scale or size than the protocol's next one."""
    if ciphertext.size() != 2 or not ciphertext.is_ntt_form() or list(ciphertext.parms_id()) != list(parms_id):
        raise LayoutMismatchError("a ciphertext has another size or level than this step's")
    if abs(ciphertext.scale - scale) > 1e-9 * scale:
        raise LayoutMismatchError("a ciphertext has another scale than this step's")
