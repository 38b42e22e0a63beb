"""Which codec a cache travels in, or whether the device computes it itself: counts and speeds -> Choice; pure.

    seconds(codec) = round trip + tokens / cloud's speed + window's opening + bytes(codec) / link's speed
                     + tokens x codec's seconds each
    seconds(local) = tokens / device's speed

Every token count is that of the size class, so that what is chosen depends on the class, the speeds that were measured
and the policy, and never on what the text is. Among codecs that are not slower than the fastest by more than a share,
the one that loses least is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LOCAL", "Choice", "Speeds", "choose", "opening_seconds", "seconds_of"]

LOCAL = "local"
# How much slower a codec that loses less may be expected to be than the fastest.
SLACK = 0.05
_FIRST_WINDOW_BYTES = 14_600


@dataclass(frozen=True, slots=True)
class Speeds:
    """What is known of the link and of both sides; bytes, tokens and seconds. The defaults stand until measured.

    `codec_seconds_per_token` is that of a calibrated codec, both ways together; the others are taken as free.
    """

    link_bytes_per_second: float = 12_500_000.0
    round_trip_seconds: float = 0.05
    cloud_tokens_per_second: float = 20_000.0
    device_tokens_per_second: float = 2_000.0
    codec_seconds_per_token: float = 1e-4


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, `codec` or `LOCAL`, and the seconds that were expected of it and of everything else."""

    codec: str
    expected_seconds: float
    expected: Mapping[str, float]
    padded_tokens: int

    @property
    def is_local(self) -> bool:
        """Tell whether the device computes the cache itself."""
        return self.codec == LOCAL

    def to_json(self) -> dict[str, object]:
        """Return plain values for `run --json`."""
        return {
            "codec": self.codec,
            "expected_seconds": round(self.expected_seconds, 6),
            "expected": {name: round(seconds, 6) for name, seconds in self.expected.items()},
            "padded_tokens": self.padded_tokens,
        }


def seconds_of(*, size_bytes: int, tokens: int, speeds: Speeds, is_calibrated: bool) -> float:
    """Return the expected seconds until a cache of `tokens` padded tokens has arrived in so many bytes."""
    coded = tokens * speeds.codec_seconds_per_token if is_calibrated else 0.0
    prefill = tokens / speeds.cloud_tokens_per_second
    moved = size_bytes / speeds.link_bytes_per_second
    return speeds.round_trip_seconds + prefill + opening_seconds(size_bytes, speeds) + moved + coded


def opening_seconds(size_bytes: int, speeds: Speeds) -> float:
    """Return what is waited for while a connection's window opens (RFC 5681): it doubles each round trip.

    Half a round trip each: while one waits the window before is on its way.
    """
    window, found = _FIRST_WINDOW_BYTES, 0.0
    while window < min(size_bytes, speeds.link_bytes_per_second * speeds.round_trip_seconds):
        window, found = 2 * window, found + speeds.round_trip_seconds / 2
    return found


def choose(
    sizes: Mapping[str, int],
    *,
    padded_tokens: int,
    local_tokens: int | None,
    speeds: Speeds,
    calibrated: Sequence[str],
    slack: float = SLACK,
) -> Choice:
    """Choose among codecs, given by their bytes and ordered from the one that loses least to the one that loses most.

    `local_tokens` is what the device would compute instead, None where that is not its part of the mode.
    """
    expected = {
        name: seconds_of(size_bytes=size, tokens=padded_tokens, speeds=speeds, is_calibrated=name in calibrated)
        for name, size in sizes.items()
    }
    fastest = min(expected.values())
    codec = next(name for name in sizes if expected[name] <= fastest * (1 + slack))
    chosen = codec
    if local_tokens is not None:
        expected[LOCAL] = local_tokens / speeds.device_tokens_per_second
        # Nothing leaves then and nothing is lost, so that it is taken where it is no slower.
        if expected[LOCAL] <= expected[codec]:
            chosen = LOCAL
    return Choice(chosen, expected[chosen], expected, padded_tokens)
