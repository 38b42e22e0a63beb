"""The cloud half as a process of its own, started and spoken to: records in, replies out; in the cloud's server.

The process (`worker`) serves one session and holds SEAL; this side of it imports neither SEAL nor torch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitinfer.errors import TransportError
from splitinfer.homomorphic.framing import receive_frame, send_frame
from splitinfer.rounds import MAX_RECORD_BYTES, Operation, Record

__all__ = ["CloudProcess"]

_Matrices: TypeAlias = Mapping[tuple[int, str], NDArray[np.floating[Any]]]


class CloudProcess:
    """Starts the process and is an exchange with it; a context manager. The process serves one session.

    `matrices` [outputs, inputs] by layer and name are what it offers; `processes` share each product. `ends` are the
    two ends of a connected stream, this process's first; a pair of local sockets where none are given. `cache` is a
    folder for encoded matrices and the digest of the weights.
    """

    def __init__(
        self,
        *,
        matrices: _Matrices | None = None,
        processes: int = 1,
        ends: tuple[socket.socket, socket.socket] | None = None,
        cache: tuple[Path, str] | None = None,
    ) -> None:
        self._stream, theirs = ends or socket.socketpair()
        command = [sys.executable, "-m", "splitinfer.homomorphic.worker", str(theirs.fileno()), str(processes)]
        command += [os.fspath(cache[0]), cache[1]] if cache else []
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        _send_matrices(self._stream, matrices or {})

    def __enter__(self) -> CloudProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int:
        """Return the process's id."""
        return self._process.pid

    def close(self) -> None:
        """Close the socket, which ends the process, and wait for it. Idempotent."""
        self._stream.close()
        self._process.wait()

    def exchange(self, record: Record) -> Record:
        """Send a record and return its reply; raises TransportError where the process ended without one."""
        send_frame(self._stream, record.to_bytes())
        data = receive_frame(self._stream, limit_bytes=MAX_RECORD_BYTES)
        if data is None:
            raise TransportError("the cloud closed the connection without a reply; start the session again")
        return Record.from_bytes(data)


def _send_matrices(stream: socket.socket, matrices: _Matrices) -> None:
    send_frame(stream, len(matrices).to_bytes(4, "big"))
    for (layer, name), matrix in matrices.items():
        blobs = (len(matrix).to_bytes(4, "big"), np.asarray(matrix, "<f4").tobytes())
        send_frame(stream, Record(0, layer, Operation[name.upper()], blobs).to_bytes())
