"""Where noise comes from: a fresh 256-bit key to Gaussian numbers, and a sum with them on a grid; on the device.

    key -> AES-256 in counter mode -> 53-bit uniforms in (0, 1) -> Box-Muller in float64 -> plus the rows -> grid

A Mersenne Twister or another statistical generator gives its state away to whoever guesses some of the text, so none is
used here. A key makes one stream. It says so itself within a process; across processes its digest stands in the log,
where a second release under it is refused (`accounting.admit`).

The sum is rounded to a multiple of a power of two about sigma / 4096, chosen from sigma alone. Rounding hides in which
low bits of a float64 the sum fell, which depend on the row (Mironov, On significance of the least significant bits for
differential privacy, CCS 2012). Epsilon is that of the ideal Gaussian; no more is claimed of the floating-point one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from splitinfer.errors import CryptoParameterError, UsageError

__all__ = ["KEY_BYTES", "Float64", "NoiseKey", "NoiseStream", "add_noise", "grid_step"]

Float64 = npt.NDArray[np.float64]

KEY_BYTES = 32
_GRID_BITS = 12
_BLOCK_NORMALS = 1 << 19
_LABEL = b"splitinfer/v1 noise key\n"


class NoiseKey:
    """A key that makes one stream; `digest` names it in the log without giving it away."""

    def __init__(self, randomness: Callable[[int], bytes]) -> None:
        """Draw a key; raises CryptoParameterError where the source gives no 32 bytes."""
        drawn = bytes(randomness(KEY_BYTES))
        if len(drawn) != KEY_BYTES:
            raise CryptoParameterError(f"the source of randomness gave {len(drawn)} bytes for a noise key, not 32")
        self._key: bytes | None = drawn
        self.digest = hashlib.sha256(_LABEL + drawn).hexdigest()

    def __repr__(self) -> str:
        return f"NoiseKey({self.digest[:16]}…)"

    def take(self) -> bytes:
        """Return the key and forget it; raises CryptoParameterError the second time."""
        key, self._key = self._key, None
        if key is None:
            raise CryptoParameterError("this noise key was used; noise under one key twice cancels out: draw a new one")
        return key


class NoiseStream:
    """Standard normal numbers in a fixed order, each given out once; takes its key."""

    def __init__(self, key: NoiseKey) -> None:
        self.key_digest = key.digest
        # A key makes one stream, so the counter may start at zero.
        self._cipher = Cipher(AES(key.take()), CTR(bytes(16))).encryptor()

    def normals(self, count: int) -> Float64:
        """Return the next `count` numbers, independent and N(0, 1), in float64; none is above 8.7.

        Pairs of 64-bit words of the key stream make pairs of numbers; an odd last one is dropped.
        """
        pieces = [self._pairs(min(_BLOCK_NORMALS, count - done)) for done in range(0, count, _BLOCK_NORMALS)]
        return np.concatenate(pieces) if pieces else np.empty(0)

    def _pairs(self, count: int) -> Float64:
        pairs = -(-count // 2)
        words = np.frombuffer(self._cipher.update(bytes(16 * pairs)), dtype="<u8").reshape(pairs, 2)
        # The middle of each of 2^53 equal parts: never 0 or 1, and the same distance from both.
        uniforms = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniforms[:, 0]))
        angle = 2.0 * np.pi * uniforms[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]


def grid_step(sigma: float) -> float:
    """Return the largest power of two that is sigma / 4096 at most; raises UsageError where sigma is not positive."""
    if not 0 < sigma < math.inf:
        raise UsageError("sigma is a positive number; without noise there is nothing to add")
    return 2.0 ** (math.floor(math.log2(sigma)) - _GRID_BITS)


def add_noise(values: npt.NDArray[np.floating], *, sigma: float, stream: NoiseStream) -> Float64:
    """Return `values` plus N(0, sigma^2) in float64, rounded to the grid of sigma; the caller casts afterwards.

    Raises UsageError for values that are not finite, of which no noise hides anything.
    """
    step = grid_step(sigma)
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise UsageError("the values to noise are not all finite numbers")
    noised = exact + sigma * stream.normals(exact.size).reshape(exact.shape)
    return np.rint(noised / step) * step
