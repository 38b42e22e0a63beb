"""The cloud half as a process of its own: weights and records over a socket -> replies; imports no torch.

    python -m splitinfer.homomorphic.process FD [PROCESSES [FOLDER WEIGHTS_SHA256]]

FD is an inherited stream socket, FOLDER where encoded matrices are kept for later sessions. First come the matrices
that this cloud offers, possibly none; then records, each answered by one. Any fault ends the process without a word on
the socket: a device sees a close, as at every end.
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

from splitinfer.errors import SplitInferError, TransportError
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.framing import receive_frame, send_frame
from splitinfer.homomorphic.helpers import SharedCloud
from splitinfer.homomorphic.weight_cache import WeightCache
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import MAX_RECORD_BYTES, Operation, Record

__all__ = ["CloudProcess", "main"]

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
        command = [sys.executable, "-m", "splitinfer.homomorphic.process", str(theirs.fileno()), str(processes)]
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


def _received(stream: socket.socket) -> bytes:
    data = receive_frame(stream, limit_bytes=MAX_RECORD_BYTES)
    if data is None:
        raise TransportError("the connection ended before all matrices had come")
    return data


def _receive_matrices(stream: socket.socket, cache: WeightCache | None) -> LinearStore:
    matrices = {}
    for _ in range(int.from_bytes(_received(stream), "big")):
        record = Record.from_bytes(_received(stream))
        rows = int.from_bytes(record.blobs[0], "big")
        matrices[record.layer, record.operation] = np.frombuffer(record.blobs[1], "<f4").reshape(rows, -1)
    return LinearStore(matrices, cache=cache)


def main(arguments: list[str]) -> int:
    """Serve one session on the socket; returns the exit code."""
    stream = socket.socket(fileno=int(arguments[0]))
    processes = int(arguments[1]) if len(arguments) > 1 else 1
    cache = WeightCache(Path(arguments[2]), weights_sha256=arguments[3]) if len(arguments) > 3 else None
    with stream:
        try:
            cloud = CloudHalf(linears=_receive_matrices(stream, cache))
            with SharedCloud(cloud, processes=processes) as shared:
                while (data := receive_frame(stream, limit_bytes=MAX_RECORD_BYTES)) is not None:
                    send_frame(stream, shared.answer(Record.from_bytes(data)).to_bytes())
        except SplitInferError as error:
            print(f"error[{error.code}]: {error}", file=sys.stderr)  # noqa: T201 - the operator's, not the device's
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
