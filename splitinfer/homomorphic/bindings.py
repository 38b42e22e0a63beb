"""The import of SEAL's bindings, which come with the extra `he`; every other module takes them from here."""

from __future__ import annotations

from importlib.util import find_spec

from splitinfer.errors import CryptoParameterError

__all__ = ["sealapi"]

if find_spec("tenseal") is None:
    raise CryptoParameterError("the homomorphic mode needs TenSEAL; run pip install 'splitinfer[he]'")

from tenseal import sealapi
