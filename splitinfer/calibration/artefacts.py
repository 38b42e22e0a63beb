"""Where a model's artefact and its certificates lie: the state folder before the model's own directory.

STATE/artefacts/WEIGHTS_SHA256.safetensors     made here by `splitinfer model calibrate`
STATE/artefacts/certificates.json              measured here by `splitinfer model measure`
MODEL/ftc1.safetensors, ftc1.certificates.json what ships with a model
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from splitinfer.codec.transform import Artefact
from splitinfer.codec.transform.artefact import FILE_NAME
from splitinfer.errors import StateError
from splitinfer.handoff import ModelIdentity
from splitinfer.home import Home
from splitinfer.home.folder import locked, write_private
from trust_models.certificates import Certificate

__all__ = ["CERTIFICATES_NAME", "Held", "find_artefact", "find_certificate", "put_artefact", "put_certificate"]

CERTIFICATES_NAME = "ftc1.certificates.json"
_FOLDER, _FILE, _LOCK = "artefacts", "certificates.json", ".certificates.lock"
_MAX_CERTIFICATES_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Held:
    """Where to look: the state folder and the model's directory."""

    home: Home
    directory: Path


def find_artefact(held: Held, identity: ModelIdentity) -> Artefact | None:
    """Return the artefact of this model, or None where there is none for exactly this one.

    Raises ArtefactError for a file that is malformed.
    """
    for path in (_own_path(held.home, identity), held.directory / FILE_NAME):
        if path.is_file():
            found = Artefact.read(path)
            if found.model == identity:
                return found
    return None


def put_artefact(artefact: Artefact, *, home: Home, out: Path | None = None) -> Path:
    """Write an artefact to the state folder, or to `out`, whole or not at all; raises StateError."""
    path = out or _own_path(home, artefact.model)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(artefact.to_bytes())
        os.replace(temporary, path)
    except OSError as error:
        raise StateError(f"the artefact cannot be written to {path}") from error
    return path


def find_certificate(held: Held, artefact: Artefact, codec: str) -> Certificate | None:
    """Return what a level was measured to cost the artefact's model, or None."""
    for path in (held.home.folder(_FOLDER) / _FILE, held.directory / CERTIFICATES_NAME):
        own = _load(path).get(artefact.digest)
        found = Certificate.from_json(own.get(codec)) if isinstance(own, dict) else None
        if found is not None:
            return found
    return None


def put_certificate(
    certificates: Mapping[str, Certificate], artefact: Artefact, *, home: Home, out: Path | None = None
) -> None:
    """Store certificates by codec, in the state folder or in `out`; raises StateError."""
    path = out or home.folder(_FOLDER) / _FILE
    with locked(home.folder(_FOLDER) / _LOCK):
        stored = {} if out else _load(path)
        own = stored.get(artefact.digest)
        kept = own if isinstance(own, dict) else {}
        stored[artefact.digest] = {**kept, **{name: found.to_json() for name, found in certificates.items()}}
        text = json.dumps(stored, sort_keys=True, indent=1) + "\n"
        if out is None:
            write_private(path, text)
            return
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StateError(f"the certificates cannot be written to {path}") from error


def _own_path(home: Home, identity: ModelIdentity) -> Path:
    return home.folder(_FOLDER) / f"{identity.weights_sha256}.safetensors"


def _load(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_CERTIFICATES_BYTES:
            return {}
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}
