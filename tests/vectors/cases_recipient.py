"""Vectors of who the recipient is (no number) and of check 6: keysets."""

from __future__ import annotations

import reference as ref
import world
from vector import Vector
from world import (
    NOW,
    STRANGER,
    STRANGER_KEM,
    KeysetCase,
)

IDENTITY = [
    Vector(
        0,
        "keyset-of-another-identity",
        KeysetCase(certificate={"identity": ref.public(STRANGER).hex()}, identity=STRANGER),
        "Another identity certified this replica properly; sealing to it would hand the prompt to a stranger.",
    ),
    Vector(
        0,
        "certificate-signed-by-another-key",
        KeysetCase(identity=STRANGER),
        "The certificate names the pinned identity, but a stranger signed it.",
    ),
    Vector(
        0,
        "keyset-signed-by-another-replica",
        KeysetCase(replica=STRANGER),
        "A true certificate stands over a keyset that another key signed; its KEM key would be a stranger's.",
    ),
    Vector(
        0,
        "kem-key-replaced",
        KeysetCase(reply={"keyset": {"kem_public_key": STRANGER_KEM.public.hex()}}),
        "The KEM key was replaced after signing; the content key would go to whoever did that.",
    ),
    Vector(
        0,
        "certificate-signature-of-another-purpose",
        KeysetCase(certificate_purpose="keyset"),
        "The identity's signature is under another context; a signature must not be read as another kind.",
    ),
    Vector(
        0,
        "keyset-signature-of-another-purpose",
        KeysetCase(keyset_purpose="receipt"),
        "The replica's signature is under another context; a signature must not be read as another kind.",
    ),
]

EPOCH_VECTORS = [
    Vector(
        6,
        "lower-epoch",
        KeysetCase(),
        "A keyset older than one seen before of this replica: a replay, perhaps of a key since stolen.",
        state={"epochs": {world.REPLICA_ID: world.EPOCH + 1}},
    ),
    Vector(
        6,
        "retired-generation",
        KeysetCase(),
        "The identity has certified a later generation since; this one was retired.",
        state={"generations": {world.PINNED: world.GENERATION + 1}},
    ),
    Vector(
        6,
        "expired-certificate",
        KeysetCase(certificate={"not_after": NOW}, keyset={"not_after": NOW}),
        "The replica's certificate has expired.",
    ),
    Vector(
        6,
        "certificate-valid-for-too-long",
        KeysetCase(certificate={"not_after": NOW + 25 * 3600 + 1}),
        "A certificate for longer than a day could not be revoked in time.",
    ),
    Vector(6, "expired-keyset", KeysetCase(keyset={"not_after": NOW}), "The keyset has expired."),
    Vector(
        6,
        "keyset-not-yet-valid",
        KeysetCase(keyset={"not_before": NOW + 1}),
        "The keyset is of the future: one of the clocks is wrong.",
    ),
    Vector(
        6,
        "keyset-outlives-its-certificate",
        KeysetCase(certificate={"not_after": NOW + 3000}),
        "The keyset would be valid when its certificate no longer is.",
    ),
]

VECTORS = [*IDENTITY, *EPOCH_VECTORS]
