"""The policy's `verify_rows` for one run: CacheSnapshot -> nothing, or VerificationError; on the device."""

from __future__ import annotations

from collections.abc import Sequence

from splitinfer.cache.snapshot import CacheSnapshot, require_rows, wipe
from splitinfer.device import Device
from splitinfer.errors import SplitInferError, UnsupportedCacheError
from splitinfer.model.verify_rows import verify_rows

__all__ = ["RowCheck"]

ROW_TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}


class RowCheck:
    """Recomputes as many random rows of a received cache of this prompt as the policy asks for."""

    def __init__(self, device: Device, token_ids: Sequence[int]) -> None:
        self._device, self._token_ids = device, token_ids

    def require_possible(self, tokens: int) -> None:
        """Refuse before anything is sent where the cache will not hold what is needed to recompute its rows."""
        if not self._device.policy.transfer.verify_rows:
            return
        try:
            require_rows(self._device.engine.layout, tokens)
        except UnsupportedCacheError as error:
            raise UnsupportedCacheError(
                f"verify_rows cannot recompute rows of {tokens} public tokens: {error}; "
                "write verify_rows = 0 in the policy for this model"
            ) from None

    def wanted(self, snapshot: CacheSnapshot) -> int:
        """Return how many rows of this cache the policy wants recomputed."""
        return min(self._device.policy.transfer.verify_rows, snapshot.true_tokens)

    def check(self, snapshot: CacheSnapshot) -> None:
        """Recompute; raises VerificationError where a row differs, and the cache is wiped then."""
        engine, count = self._device.engine, self.wanted(snapshot)
        rows: set[int] = set()
        while len(rows) < count:
            rows.add(int.from_bytes(self._device.randomness(8), "big") % snapshot.true_tokens)
        tolerance = ROW_TOLERANCES[engine.numerics.dtype]
        try:
            verify_rows(engine, self._token_ids, snapshot, rows=sorted(rows), tolerance=tolerance)
        except SplitInferError:
            wipe(snapshot)
            raise
