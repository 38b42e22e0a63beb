"""What a session on the device lends to every run: policy, model, gate, keys, store, transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.attestation.appraise import SeenKeysets
from splitinfer.chooser import Chooser
from splitinfer.codec.transform import Artefact
from splitinfer.conversation import Conversation
from splitinfer.egress.gate import Gate
from splitinfer.handoff import Transport
from splitinfer.home.clips import ClipFile
from splitinfer.home.distances import DistanceFile
from splitinfer.masking.pool import MaskPool
from splitinfer.model.engine import Engine
from splitinfer.noise.certificate import Measured
from splitinfer.store import CacheStore
from trust_models.policy import Policy

__all__ = ["Device"]


@dataclass(frozen=True, slots=True)
class Device:
    """What a session lends to every run. `transport` is None where the mode has no other side.

    `conversation` is what the session remembers between its runs. `store` is None where no cache is kept: in every
    mode but `public-prefix`, or where policy or caller say so. `masks` opens the pool of mode `masked`, else None.
    `artefact` is for calibrated codecs, `chooser` for codec "auto".
    `distances` are the sensitivities found before, `clips` the clip norms, None where each run finds its own;
    `measured` is what an evaluation found of this policy on this model, where there was one.
    """

    policy: Policy
    engine: Engine
    gate: Gate
    pinned_sha256: str
    transport: Transport | None
    key: Ed25519PrivateKey = field(repr=False)
    seen: SeenKeysets
    clock: Callable[[], float]
    randomness: Callable[[int], bytes] = field(repr=False)
    conversation: Conversation
    on_prefill: Callable[[int, int], None] | None = None
    store: CacheStore | None = None
    artefact: Artefact | None = None
    chooser: Chooser | None = None
    distances: DistanceFile | None = None
    clips: ClipFile | None = None
    measured: Measured | None = None
    masks: Callable[[], MaskPool] | None = field(default=None, repr=False)

    def prefill_progress(self, total: int) -> Callable[[int], None] | None:
        """Return what the engine calls with the number of prompt tokens done so far."""
        report = self.on_prefill
        return None if report is None else lambda done: report(done, total)
