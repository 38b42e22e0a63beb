"""Noise that is the same in every test run."""

from __future__ import annotations

import hashlib

from splitinfer.noise.stream import NoiseKey, NoiseStream

__all__ = ["fixed_key", "fixed_stream"]


def fixed_key(seed: int) -> NoiseKey:
    return NoiseKey(lambda count: hashlib.shake_256(seed.to_bytes(8, "big")).digest(count))


def fixed_stream(seed: int) -> NoiseStream:
    return NoiseStream(fixed_key(seed))
