"""The state folder `$SPLITINFER_HOME` (0700): keys, remotes, what was seen, allowed devices, paths; either side."""

from splitinfer.home.folder import Home

__all__ = ["Home"]
