"""Where everything lies in the state folder, and small files written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer.errors import StateError

__all__ = ["Home", "locked", "read_hex", "write_private"]

ENVIRONMENT = "SPLITINFER_HOME"


class Home:
    """One state folder; made with mode 0700 on first use and refused when others can read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = path.stat().st_mode
        except OSError as error:
            raise StateError(f"the state folder {path} cannot be made: {error.strerror}") from error
        if mode & 0o077:
            raise StateError(f"the state folder {path} can be read by others; run chmod 700 {path}")

    @classmethod
    def find(cls, given: str | None = None) -> Home:
        """Open the folder given, else `$SPLITINFER_HOME`, else `~/.splitinfer`."""
        chosen = given or os.environ.get(ENVIRONMENT)
        return cls(Path(chosen) if chosen else Path.home() / ".splitinfer")

    @property
    def audit(self) -> Path:
        """Return the audit log's directory."""
        return self.path / "audit"

    @property
    def digests(self) -> Path:
        """Return the cache file of model digests."""
        return self.path / "digests.json"

    def key(self, name: str) -> Ed25519PrivateKey:
        """Return the Ed25519 key of this name, made on first use (0600); the public half lies beside it."""
        path = self._keys / f"{name}.key"
        if not path.exists():
            _create_once(path, Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
        key = Ed25519PrivateKey.from_private_bytes(read_hex(path, 32))
        public = path.with_suffix(".pub")
        if not public.exists():
            write_private(public, key.public_key().public_bytes_raw().hex() + "\n")
        return key

    def secret(self, name: str) -> bytes:
        """Return the 32 random bytes of this name, made on first use (0600); raises StateError."""
        path = self._keys / f"{name}.key"
        if not path.exists():
            _create_once(path, secrets.token_bytes(32).hex() + "\n")
        return read_hex(path, 32)

    def has_key(self, name: str) -> bool:
        """Tell whether the key of this name was made before."""
        return (self._keys / f"{name}.key").exists()

    @property
    def log_origin(self) -> str:
        """Return the audit log's origin line: unique to this folder's checkpoint key."""
        return f"splitinfer/{self.key('checkpoint').public_key().public_bytes_raw().hex()[:16]}"

    @property
    def _keys(self) -> Path:
        return self.folder("keys")

    def folder(self, name: str) -> Path:
        """Return a folder inside, made with mode 0700 on first use; raises StateError."""
        path = self.path / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(f"the folder {name} cannot be made: {error.strerror}") from error
        return path


def read_hex(path: Path, size_bytes: int) -> bytes:
    """Read one line of hexadecimal; raises StateError without showing the content."""
    try:
        data = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise StateError(f"the file {path.name} cannot be read as hexadecimal") from error
    if len(data) != size_bytes:
        raise StateError(f"the file {path.name} must hold {size_bytes} bytes in hexadecimal")
    return data


def write_private(path: Path, text: str) -> None:
    """Write a small file (0600) by rename, so that a crash leaves the old or the new one; raises StateError."""
    with _temporary(path, text) as temporary:
        temporary.replace(path)


def _create_once(path: Path, text: str) -> None:
    """Write a small file (0600) unless there is one: of several callers at once, the first one's stays."""
    with _temporary(path, text) as temporary, suppress(FileExistsError):
        os.link(temporary, path)


@contextmanager
def _temporary(path: Path, text: str) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_directory(path.parent)
    except OSError as error:
        raise StateError(f"the file {path.name} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on this file, made if missing, against other processes; raises StateError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(f"the file {path.name} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
