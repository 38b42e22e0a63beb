"""The worker process of the cloud half: weights and records over a socket -> replies; imports no torch.

    python -m splitinfer.homomorphic.worker FD [PROCESSES [FOLDER WEIGHTS_SHA256]]

FD is an inherited stream socket, FOLDER where encoded matrices are kept for later sessions. First come the matrices
that this cloud offers, possibly none; then records, each answered by one. Any fault ends the process without a word on
the socket: a device sees a close, as at every end.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import numpy as np

from splitinfer.errors import SplitInferError, TransportError
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.framing import receive_frame, send_frame
from splitinfer.homomorphic.helpers import SharedCloud
from splitinfer.homomorphic.weight_cache import WeightCache
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.rounds import MAX_RECORD_BYTES, Record

__all__ = ["main"]


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
