"""Where the pools of one-time masks and their anchors lie: a state folder and a model -> MaskPool; on the device.

A pool lies in the state folder, its anchor outside of it, so that a state folder that was copied or put back is found.
"""

from __future__ import annotations

import os
from pathlib import Path

from splitinfer.handoff import ModelIdentity
from splitinfer.home.folder import Home
from splitinfer.masking.pool import MaskPool

__all__ = ["ANCHORS_ENVIRONMENT", "anchors_folder", "masks_folder", "open_masks"]

ANCHORS_ENVIRONMENT = "SPLITINFER_ANCHORS"


def masks_folder(home: Home, model: ModelIdentity) -> Path:
    """Return the folder of a model's pool, made or not."""
    return home.folder("masks") / model.weights_sha256[:32]


def anchors_folder() -> Path:
    """Return the machine's folder of anchors: `$SPLITINFER_ANCHORS`, else below `$XDG_STATE_HOME` or ~/.local/state."""
    given = os.environ.get(ANCHORS_ENVIRONMENT)
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "splitinfer" / "anchors"


def open_masks(home: Home, model: ModelIdentity) -> MaskPool:
    """Open a model's pool; raises StateError for none or a damaged one, MasksExhaustedError for one not to be used."""
    return MaskPool(masks_folder(home, model), anchors=anchors_folder())
