"""The address of a remote: url text -> its checked, normal form; device side, no IO.

No sentence repeats the address, because it may hold a password.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

__all__ = ["check_url", "is_loopback"]

_FORM = 'write url = "https://HOST" or "https://HOST:PORT"'


def check_url(url: str) -> str:
    """Return the url without a trailing slash; raise ValueError with a sentence that says what to write instead.

    Accepted are https to any host, and http to a loopback host; no credentials, path, query or fragment.
    """
    parts = _split(url)
    if "@" in parts.netloc:
        raise ValueError(f"remote.url holds credentials; devices are known by their keys, so {_FORM}")
    if parts.path not in {"", "/"} or "?" in url or "#" in url:
        raise ValueError(f"remote.url has a path, query or fragment; {_FORM}")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("remote.url uses http to a host that is not this machine; write https:// instead of http://")
    return f"{parts.scheme}://{parts.netloc}"


def _split(url: str) -> SplitResult:
    # urlsplit drops tabs and newlines silently, so that what is checked would not be what is written.
    if not url.isascii() or not url.isprintable() or any(letter in url for letter in " \\"):
        raise ValueError(f"remote.url holds a blank, a backslash or a character outside ASCII; {_FORM}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"remote.url is not an address; {_FORM}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"remote.url is not an address; {_FORM}")
    return parts


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine by its name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
