"""The small model that ships with the package; its directory is the data. See MODEL_CARD.md beside this file."""

from __future__ import annotations

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """Return the directory of the embedded checkpoint."""
    return Path(__file__).resolve().parent
