"""The policy's sections of the modes that compute in rounds, `[homomorphic]` and `[masked]`; device side, no IO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from trust_models.section import Section, refuse

__all__ = ["PROFILE_TEXTS", "Homomorphic", "Masked"]

_MIN_PROMPT, _MAX_PROMPT = 2, 4096
_MIN_POOL_BYTES = 1024 * 1024
_MAX_RESERVE = 1024

PROFILE_TEXTS = {
    "balanced": (
        "128-bit security against classical attacks, below 128-bit against quantum ones (tables of the Homomorphic "
        "Encryption Standard: modulus of 109 bits at ring degree 4096, where 101 is the post-quantum limit)"
    ),
    "accurate": (
        "128-bit security against classical and against quantum attacks (tables of the Homomorphic Encryption "
        "Standard: modulus of 160 bits at ring degree 8192, where 202 is the post-quantum limit)"
    ),
    "fast": (
        "approximate: of two next tokens that are nearly as probable the other may be chosen; 128-bit security against "
        "classical attacks, below 128-bit against quantum ones (modulus of 109 bits at ring degree 4096)"
    ),
}


def _prompt_tokens(value: int) -> int:
    if not _MIN_PROMPT <= value <= _MAX_PROMPT:
        refuse(
            f"homomorphic.max_prompt_tokens is outside {_MIN_PROMPT} to {_MAX_PROMPT}; write 64, or how many tokens "
            "you are willing to wait for"
        )
    return value


def _pool_bytes(value: int) -> int:
    if value < _MIN_POOL_BYTES:
        refuse(f"masked.max_bytes is below {_MIN_POOL_BYTES}, too little for any model; write a larger limit")
    return value


def _reserve(value: int) -> int:
    if not 1 <= value <= _MAX_RESERVE:
        refuse(f"masked.reserve is outside 1 to {_MAX_RESERVE} masks; write 8 unless you measured a better one")
    return value


class Homomorphic(Section):
    """How the cloud computes on ciphertexts.

    `profile` is a row of the closed table of parameters. `linear` says who applies the large matrices; "cloud" lets the
    device do without them, bounds the prompt to `max_prompt_tokens`, and is slow. `public` says whether the cache of
    the leading public segments lies at the cloud encrypted or in the clear.
    """

    profile: Literal["balanced", "accurate", "fast"] = "balanced"
    linear: Literal["device", "cloud"] = "device"
    public: Literal["encrypted", "plaintext"] = "encrypted"
    max_prompt_tokens: Annotated[int, AfterValidator(_prompt_tokens)] = 64


class Masked(Section):
    """How many bytes the pool of one-time masks may take, and how many masks are reserved at a time."""

    max_bytes: Annotated[int, AfterValidator(_pool_bytes)] = 1024**3
    reserve: Annotated[int, AfterValidator(_reserve)] = 8
