"""Clip norms and weights found on public text before: a small JSON file of the state folder, by weights digest."""

from __future__ import annotations

from splitinfer.errors import UsageError
from splitinfer.home.folder import Home
from splitinfer.home.json_table import JsonTable
from splitinfer.noise.clipping import ClipPlan, SlabClip

__all__ = ["ClipFile"]


class ClipFile:
    """Clip plans by weights digest; a file that cannot be read counts as empty."""

    def __init__(self, home: Home) -> None:
        self._table = JsonTable(home, "clips")

    def get(self, weights_sha256: str) -> ClipPlan | None:
        """Return what was found for this model, or None."""
        return _plan(self._table.load().get(weights_sha256))

    def put(self, weights_sha256: str, plan: ClipPlan) -> None:
        """Store a plan; raises StateError where the file cannot be written."""
        slabs = [[slab.name, slab.dim, slab.clip_norm.hex(), slab.weight.hex()] for slab in plan.slabs]
        entry = {"quantile": plan.quantile.hex(), "public_rows": plan.public_rows, "slabs": slabs}
        self._table.update(weights_sha256, lambda _: entry)


def _plan(stored: object) -> ClipPlan | None:
    if not isinstance(stored, dict) or set(stored) != {"quantile", "public_rows", "slabs"}:
        return None
    try:
        slabs = tuple(_slab(*row) for row in stored["slabs"])
        plan = ClipPlan(slabs, float.fromhex(stored["quantile"]), stored["public_rows"])
    except (TypeError, ValueError, OverflowError, UsageError):
        return None
    is_sound = slabs and 0 < plan.quantile <= 1 and isinstance(plan.public_rows, int) and plan.public_rows > 0
    return plan if is_sound else None


def _slab(name: object, dim: object, clip_norm: str, weight: str) -> SlabClip:
    if not isinstance(name, str) or not isinstance(dim, int):
        raise TypeError("a slab has a name and a dimension")
    return SlabClip(name, dim, float.fromhex(clip_norm), float.fromhex(weight))
