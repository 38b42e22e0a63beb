"""What `codec = "auto"` means for one transfer: policy, artefact, certificates and measured speeds -> Choice; device.

The rule itself is `selector`. Here it is told which codecs the policy permits, how many bytes each would be on the
wire, and how fast the link and both sides were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinfer import codec, schedule
from splitinfer.codec.transform import Artefact
from splitinfer.errors import PolicyError
from splitinfer.handoff import CacheLayout
from splitinfer.sealing.manifest import MANIFEST_REGION_BYTES
from splitinfer.sealing.stream import TAG_BYTES, chunk_count
from splitinfer.selector import Choice, Speeds, choose
from trust_models.codecs import CALIBRATED, Loss, require_codec
from trust_models.schema import Transfer

__all__ = ["CANDIDATES", "Chooser", "permitted"]

# From what loses nothing to what loses most. `lossless` is not among them: its length is not known before.
CANDIDATES = ("raw", "q8", *CALIBRATED)


@dataclass(frozen=True, slots=True)
class Chooser:
    """What a session knows when it chooses; `speeds()` is read before each run, `learn` is told what a run measured."""

    layout: CacheLayout
    artefact: Artefact | None
    codecs: Sequence[str]
    speeds: Callable[[], Speeds]
    learn: Callable[[dict[str, float]], None] = field(repr=False)

    def choose(self, *, padded_tokens: int, base_tokens: int, local_tokens: int | None) -> Choice:
        """Choose for a cache of `padded_tokens` of which `base_tokens` are there already."""
        sizes = {
            name: wire_bytes(
                codec.size_bytes(
                    self.layout,
                    codec=name,
                    padded_tokens=padded_tokens,
                    base_tokens=base_tokens,
                    artefact=self.artefact,
                ),
                is_small=name in CALIBRATED,
            )
            for name in self.codecs
        }
        return choose(
            sizes,
            padded_tokens=padded_tokens - base_tokens,
            local_tokens=local_tokens,
            speeds=self.speeds(),
            calibrated=CALIBRATED,
        )


def wire_bytes(slab_bytes: int, *, is_small: bool) -> int:
    """Return the bytes of a stream with these slabs: manifest region, chunks and their tags."""
    chunk = schedule.cache_chunk_bytes(slab_bytes, is_small=is_small)
    region = max(MANIFEST_REGION_BYTES, chunk)
    return chunk_count(region + slab_bytes, chunk) * (chunk + TAG_BYTES)


def permitted(
    transfer: Transfer, *, parameters: int, loss_of: Callable[[str], Loss | None], artefact: Artefact | None
) -> tuple[str, ...]:
    """Return the candidates that the policy permits for this model; `raw` always is one."""
    found = []
    for name in CANDIDATES:
        if name in CALIBRATED and (artefact is None or name not in artefact.facts.levels):
            continue
        try:
            require_codec(transfer, parameters=parameters, loss=loss_of(name), codec=name)
        except PolicyError:
            continue
        found.append(name)
    return tuple(found)
