"""CKKS parameter profiles and their security: a profile's name -> Parameters, or CryptoParameterError; both sides.

One multiplicative level is enough, because the device decrypts after every product. Security is that of RLWE with a
uniform ternary secret by the tables of the Homomorphic Encryption Standard (2018, tables 1 and 2), which are SEAL's.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from splitinfer.errors import CryptoParameterError

__all__ = ["PROFILES", "Parameters", "parameters_for", "require_secure"]

# Ring degree -> the largest modulus in bits at 128, 192 and 256 bits of security.
_LEVELS = (128, 192, 256)
_CLASSICAL = {
    1024: (27, 19, 14),
    2048: (54, 37, 29),
    4096: (109, 75, 58),
    8192: (218, 152, 118),
    16384: (438, 305, 237),
    32768: (881, 611, 476),
}
_POST_QUANTUM = {
    1024: (25, 17, 13),
    2048: (51, 35, 27),
    4096: (101, 70, 54),
    8192: (202, 141, 109),
    16384: (411, 284, 220),
    32768: (827, 571, 443),
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """One CKKS parameter set. The last prime serves key switching only; with three primes a product is rescaled once.

    Scales are powers of two: queries and probabilities at `query_bits`, keys and values at `cache_bits`, inputs of
    linear layers at `input_bits`, weights at `weight_bits`. Both products have one scale, so that they can be added.
    """

    profile: str
    ring_degree: int
    modulus_bits: tuple[int, ...]
    query_bits: int
    cache_bits: int
    input_bits: int
    weight_bits: int
    is_approximate: bool = False

    @property
    def slots(self) -> int:
        """Return how many complex numbers one ciphertext holds."""
        return self.ring_degree // 2

    @property
    def is_rescaled(self) -> bool:
        """Return whether a product is rescaled before it is returned."""
        return len(self.modulus_bits) > 2

    @property
    def capacity_bits(self) -> int:
        """Return log2 of the bound on what a product may hold; beyond it values would wrap."""
        product = max(self.query_bits + self.cache_bits, self.input_bits + self.weight_bits)
        return sum(self.modulus_bits[:-1]) - 1 - product

    @property
    def classical_bits(self) -> int:
        """Return the security level against classical attacks by the standard's table: 0, 128, 192 or 256."""
        return _level(_CLASSICAL, self)

    @property
    def post_quantum_bits(self) -> int:
        """Return the security level against quantum attacks by the standard's table; 0 means below 128."""
        return _level(_POST_QUANTUM, self)

    @property
    def security(self) -> str:
        """Say both levels in a sentence."""
        after = f"{self.post_quantum_bits}-bit" if self.post_quantum_bits else "below 128-bit"
        total, limit = sum(self.modulus_bits), _POST_QUANTUM[self.ring_degree][0]
        return (
            f"{self.classical_bits}-bit classical, {after} post-quantum by the HE standard's tables "
            f"(modulus {total} bits at ring degree {self.ring_degree}; the post-quantum limit is {limit})"
        )


def _level(table: dict[int, tuple[int, int, int]], parameters: Parameters) -> int:
    limits, total = table.get(parameters.ring_degree, (0, 0, 0)), sum(parameters.modulus_bits)
    return max((level for level, limit in zip(_LEVELS, limits, strict=True) if total <= limit), default=0)


# The special prime gets the spare bits: equal primes make the noise of rotations ten times larger. What is divided away
# is less than half of the rest, since a product is rotated at the scale that is left.
PROFILES = MappingProxyType(
    {
        "balanced": Parameters("balanced", 4096, (37, 32, 40), 31, 30, 31, 30),
        "accurate": Parameters("accurate", 8192, (60, 40, 60), 40, 40, 40, 40),
        "fast": Parameters("fast", 4096, (52, 57), 22, 22, 25, 19, is_approximate=True),
    }
)


def parameters_for(profile: str) -> Parameters:
    """Return the parameters of a profile; raises CryptoParameterError for a name that is not in the table."""
    if profile not in PROFILES:
        raise CryptoParameterError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    require_secure(PROFILES[profile])
    return PROFILES[profile]


def require_secure(parameters: Parameters) -> None:
    """Raise CryptoParameterError for parameters below 128-bit classical security or without room for a product."""
    if not parameters.classical_bits:
        limit = _CLASSICAL.get(parameters.ring_degree, (0,))[0]
        raise CryptoParameterError(
            f"a modulus of {sum(parameters.modulus_bits)} bits at ring degree {parameters.ring_degree} is below "
            f"128-bit security, where the HE standard allows {limit} bits; choose a profile: {', '.join(PROFILES)}"
        )
    if parameters.capacity_bits < 7:
        raise CryptoParameterError(
            f"a product has room for values below 2^{parameters.capacity_bits}; 2^7 is needed: lower the scales"
        )
