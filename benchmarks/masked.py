"""The masked mode against its marks: exactness, logit error, time a token, tampered replies; one thread.

The cloud half answers in the same process, so that the time a token is that of both halves; the bytes of a round and
the time of one round trip over a TCP connection on the loopback interface are printed apart. Exits 1 where a mark is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer.errors import AuthenticationError
from splitinfer.homomorphic.framing import receive_frame, send_frame
from splitinfer.masking.checks import Checks
from splitinfer.masking.cloud import MaskedCloud, MemoryMarks
from splitinfer.masking.device import MaskedDevice
from splitinfer.masking.fixed_point import FixedMatrix, fixed_matrix, fixed_vector
from splitinfer.masking.layout import MatrixKey
from splitinfer.masking.pool import MaskPool
from splitinfer.masking.prepare import prepare
from splitinfer.masking.ring import masked_product
from splitinfer.model.layerwise import Linear, LocalAttention, LocalLinear, layerwise, matrices
from splitinfer.model.loading import load
from splitinfer.model.prompt import tokenize
from splitinfer.rounds import Operation
from tools.corpus import held_out_prompts

LOGIT_ERROR, SECONDS, TAMPERED = 1e-2, 0.05, 1000


@dataclass
class Report:
    """Figures by name and the marks that were missed."""

    figures: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def mark(self, name: str, value: float, limit: float) -> None:
        """Keep a figure and compare it with its mark."""
        self.figures[name] = value
        self.missed += [name] if value > limit else []
        print(f"{name}: {value:.3g} (at most {limit:g})", file=sys.stderr, flush=True)

    def note(self, name: str, value: float) -> None:
        """Keep a figure that has no mark."""
        self.figures[name] = value
        print(f"{name}: {value:.3g}", file=sys.stderr, flush=True)


def decode(report: Report, tokens: int) -> None:
    """Decode the embedded model masked, in the clear and in the clear over the same integers; compare every step."""
    loaded = load("embedded", threads=1)
    written, held = layerwise(loaded.model), matrices(loaded.model)
    fixed = {(layer, Operation[name.upper()]): fixed_matrix(m) for (layer, name), m in held.items()}
    prompt = list(tokenize(loaded.tokenizer, held_out_prompts(1, 7)[0][0]).token_ids)
    with tempfile.TemporaryDirectory() as folder:
        pool = made_pool(report, Path(folder), fixed, loaded.identity.weights_sha256, tokens)
        cloud = MaskedCloud(fixed, weights_sha256=loaded.identity.weights_sha256, marks=MemoryMarks())
        attentions = [LocalAttention(len(written.layers)) for _ in range(3)]
        local, exact = LocalLinear(held).linear, over_integers(fixed)
        for position, token in enumerate(prompt[:-1]):
            for attention in attentions:
                written.step(token, position, attend=attention.attend, linear=local)
        errors, different, taken, last = [], 0, 0.0, prompt[-1]
        with MaskedDevice(pool, cloud.answer) as device:
            for position in range(len(prompt) - 1, len(prompt) - 1 + tokens):
                began = time.perf_counter()
                found = written.step(last, position, attend=attentions[1].attend, linear=device.linear)
                taken += time.perf_counter() - began
                integer = written.step(last, position, attend=attentions[2].attend, linear=exact)
                plain = written.step(last, position, attend=attentions[0].attend, linear=local)
                errors.append(float(np.abs(found - plain).max() / plain.std()))
                different += not np.array_equal(found, integer)
                last = int(plain.argmax())
            moved = device.traffic
    report.mark("steps that differ from the integers'", different, 0)
    report.mark("logit error, in standard deviations", max(errors), LOGIT_ERROR)
    report.mark("seconds a token", taken / tokens, SECONDS)
    report.note("MB a token", (moved.sent_bytes + moved.received_bytes) / tokens / 1e6)
    report.note("rounds a token", (moved.rounds - 1) / tokens)


def made_pool(
    report: Report, folder: Path, fixed: dict[MatrixKey, FixedMatrix], weights_sha256: str, tokens: int
) -> MaskPool:
    """Make a pool and time the offline pass."""
    pool = MaskPool.create(
        folder / "pool", fixed, anchors=folder / "anchors", weights_sha256=weights_sha256, randomness=os.urandom
    )
    began = time.perf_counter()
    prepare(pool, fixed, tokens=tokens + 8, limit_bytes=1 << 30)
    report.note("offline milliseconds a token", 1e3 * (time.perf_counter() - began) / (tokens + 8))
    report.note("pool KB a token", pool.layout.product_bytes / 1e3)
    return pool


def over_integers(fixed: dict[MatrixKey, FixedMatrix]) -> Linear:
    """Return a `linear` over the same integers without masks."""

    def linear(layer: int, name: str, vector: np.ndarray) -> np.ndarray:
        matrix = fixed[layer, Operation[name.upper()]]
        integers, step = fixed_vector(vector)
        return (matrix.integers @ integers) * matrix.scale * step

    return linear


def tamper(report: Report) -> None:
    """Tamper with 1,000 products, half of the errors 2^j on one element, j = 40 to 47; count what passes."""
    random = np.random.default_rng(1)
    weights = random.integers(-(2**15), 2**15, size=(320, 192))
    passed = weak = 0
    for trial in range(TAMPERED):
        checks = Checks.of(weights, randomness=os.urandom)
        masked = random.integers(0, 2**48, size=192, dtype=np.uint64)
        wrong = masked_product(weights, masked)
        if trial % 2:
            wrong[random.integers(len(wrong))] += np.uint64(1 << (40 + trial // 2 % 8))
        else:
            wrong[random.integers(len(wrong))] += random.integers(1, 2**48, dtype=np.uint64)
        try:
            checks.require(wrong, masked)
            passed += 1
        except AuthenticationError:
            pass
        left, right = (
            (one[0] * two).sum(dtype=np.uint64) for one, two in ((checks.vectors, wrong), (checks.products, masked))
        )
        weak += (int(left) - int(right)) % 2**48 == 0
    report.mark("tampered products of 1,000 that pass", passed, 0)
    report.note("of which a single check mod 2^48 lets pass", weak)
    report.missed += [] if weak else ["a single check mod 2^48 lets some pass"]


def round_trip(report: Report) -> None:
    """Time one round trip of a linear layer's bytes over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()

    def echo() -> None:
        while (data := receive_frame(theirs, limit_bytes=1 << 20)) is not None:
            send_frame(theirs, data)

    thread = threading.Thread(target=echo)
    thread.start()
    taken = []
    for _ in range(50):
        began = time.perf_counter()
        send_frame(ours, bytes(2000))
        receive_frame(ours, limit_bytes=1 << 20)
        taken.append(time.perf_counter() - began)
    ours.close()
    thread.join()
    theirs.close()
    report.note("milliseconds of one round trip over loopback", 1e3 * sorted(taken)[25])


def main() -> int:
    """Run everything; print the figures and the marks that were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded (default 64)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    report = Report()
    decode(report, options.tokens)
    tamper(report)
    round_trip(report)
    print(json.dumps(asdict(report)) if options.json else f"marks missed: {', '.join(report.missed) or 'none'}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
