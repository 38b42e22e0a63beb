"""What a cloud keeps in its state folder: allowed devices, its identity and replica, the last epoch; on the cloud."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.attestation.keyset import Certificate, Replica, certify, replica_id_of
from splitinfer.errors import ManifestError, StateError
from splitinfer.home.folder import Home, locked, write_private
from splitinfer.sealing.wire import parse_wire

__all__ = ["allow_device", "allowed_devices", "generation", "make_replica"]

_KEY = re.compile(r"[0-9a-f]{64}")


def allow_device(home: Home, public_key_hex: str) -> None:
    """Add a device key to those whose requests are answered; raises StateError."""
    if not _KEY.fullmatch(public_key_hex):
        raise StateError("a device key is 64 lower-case hexadecimal digits; `splitinfer keys show` prints it")
    with locked(home.path / "allowed.lock"):
        keys = [key.hex() for key in allowed_devices(home)]
        if public_key_hex not in keys:
            write_private(home.path / "allowed", "\n".join([*keys, public_key_hex]) + "\n")


def allowed_devices(home: Home) -> tuple[bytes, ...]:
    """Return the allowed device keys, read anew each time, so that a removed one stops working at once."""
    try:
        lines = (home.path / "allowed").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise StateError("the file of allowed devices cannot be read") from error
    if not all(_KEY.fullmatch(line) for line in lines):
        raise StateError("the file of allowed devices must hold one 64-digit key a line")
    return tuple(bytes.fromhex(line) for line in lines)


def generation(home: Home) -> int:
    """Return the identity's present generation (file `generation`, 1 at first); raising it retires older replicas."""
    return _number(home.path / "generation", default=1, limit=2**31 - 1)


def make_replica(home: Home, *, clock: Callable[[], float] = time.time) -> Replica:
    """Make this process's replica: self-certified with the identity key at hand, else by `replica.cert`.

    Raises StateError where there is neither: nothing is served without a certificate.
    """
    if (home.path / "replica.cert").exists():
        key = home.key("replica")
        _stored_certificate(home, key)
        return Replica(key, lambda: _stored_certificate(home, key), next_epoch=_next_epoch(home), clock=clock)
    if not home.has_key("identity"):
        hint = "`splitinfer keys create-identity`, or `keys certify` where the identity key is"
        raise StateError(f"there is neither an identity key nor a replica certificate here; run {hint}")
    return Replica(*_self_certified(home, clock), next_epoch=_next_epoch(home), clock=clock)


def _self_certified(home: Home, clock: Callable[[], float]) -> tuple[Ed25519PrivateKey, Callable[[], Certificate]]:
    identity, key = home.key("identity"), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    replica_id = replica_id_of(public)
    held: list[Certificate] = []

    def certificate() -> Certificate:
        now = int(clock())
        if not held or held[0].body.not_after - now < 12 * 3600:
            held[:] = [_certified(home, identity, replica_id, public, now)]
        return held[0]

    return key, certificate


def _certified(home: Home, identity: Ed25519PrivateKey, replica_id: str, public: bytes, now: int) -> Certificate:
    present = generation(home)
    return certify(identity, replica_id=replica_id, replica_public_key=public, generation=present, now=now)


def _stored_certificate(home: Home, key: Ed25519PrivateKey) -> Certificate:
    try:
        data = (home.path / "replica.cert").read_bytes().strip()
        certificate = parse_wire(Certificate, data, what="replica certificate")
    except (OSError, ManifestError) as error:
        raise StateError("replica.cert cannot be read; certify this replica again") from error
    if certificate.body.replica_key != key.public_key().public_bytes_raw().hex():
        raise StateError("replica.cert certifies another replica key; certify this replica again")
    return certificate


def _next_epoch(home: Home) -> Callable[[int], int]:
    path = home.path / "epoch"

    def following(now: int) -> int:
        with locked(path.with_suffix(".lock")):
            epoch = max(_number(path, default=0, limit=2**53 - 2) + 1, now)
            write_private(path, f"{epoch}\n")
        return epoch

    return following


def _number(path: Path, *, default: int, limit: int) -> int:
    try:
        value = int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise StateError(f"the file {path.name} must hold one number") from error
    if not 0 <= value <= limit:
        raise StateError(f"the file {path.name} must hold a number from 0 to {limit}")
    return value
