"""The server's side of TLS: certificate and key files -> a context of TLS 1.3; cloud side."""

from __future__ import annotations

import ssl
from pathlib import Path

from splitinfer.errors import UsageError

__all__ = ["server_context"]


def server_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    """Return a context with this certificate chain; raises UsageError for a file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for name, path in (("tls_certificate", certificate), ("tls_private_key", private_key)):
        _require_readable(name, path)
    try:
        # The callable keeps OpenSSL from asking the terminal for the password of an encrypted key.
        context.load_cert_chain(certificate, private_key, password=lambda: "")
    except (OSError, ValueError):
        raise UsageError(
            "tls_certificate and tls_private_key are not a PEM certificate and its unencrypted private key"
        ) from None
    return context


def _require_readable(name: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({type(error).__name__}); name a PEM file") from None
