"""The simulated disk that forgets, with the two operations that the store has besides the audit log's."""

from __future__ import annotations

from pathlib import Path

from splitinfer.store.files import Status
from tests.support.lossy_files import File, LossyFiles


class LossyStoreFiles(LossyFiles):
    """Times of use are not kept: what a loss of power does to them changes only what is removed first."""

    def status(self, path: Path) -> Status:
        node = self.disk.node(path)
        is_file = isinstance(node, File)
        return Status(len(node.current()) if is_file else 0, 0o600 if is_file else 0o700, 0)

    def touch(self, path: Path, time_ns: int) -> None:  # noqa: ARG002
        self.disk.node(path)
