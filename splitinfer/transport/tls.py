"""The device's side of TLS: a CA file or the system's store -> a client context of TLS 1.3; no IO but these files."""

from __future__ import annotations

import ssl
from pathlib import Path

from splitinfer.errors import TransportError

__all__ = ["client_context"]


def client_context(tls_ca: Path | None) -> ssl.SSLContext:
    """Return a context that trusts `tls_ca` alone, or the system's store; raises TransportError for an unusable file.

    `ssl.create_default_context` is not used: it follows SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(*_locations(tls_ca))
    except (OSError, ssl.SSLError):
        raise TransportError("the CA file of the remote cannot be read; expected PEM certificates") from None
    return context


def _locations(tls_ca: Path | None) -> tuple[str | None, str | None]:
    if tls_ca is not None:
        return str(tls_ca), None
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    if not file.is_file() and not folder.is_dir():
        raise TransportError("this machine has no store of certificates; name the cloud's CA file as tls_ca")
    return (str(file) if file.is_file() else None), (str(folder) if folder.is_dir() else None)
