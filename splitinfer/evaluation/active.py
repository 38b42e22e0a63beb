"""The active attacker: changes what crosses between device and cloud -> which manipulations were accepted. Evaluation.

Threat: whoever stands between the two, or runs what ends TLS, and has seen an honest run of the same policy before. It
flips bits, cuts, injects, plays older requests and replies again, swaps the end of a reply with its receipt, and offers
another cloud's keyset. Each manipulation is one run of the product's own path; it was accepted where the device showed
an answer all the same, or the cloud worked on a request that it had seen. What it learns besides is what the network
observer sees, and that the run was refused. Chance has no part in it: a share above 0 is a fault.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from splitinfer.cloud import CloudService
from splitinfer.errors import SplitInferError, UsageError
from splitinfer.evaluation.capture import Stage
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.prompts import EvaluationPrompt
from splitinfer.evaluation.scratch import Scratch
from splitinfer.handoff import Cloud, CloudReply, Route, SamplingParams, Source
from splitinfer.home.masks import masks_folder
from splitinfer.model.engine import Engine
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

__all__ = ["MANIPULATIONS", "ActiveFigures", "Recorded", "Tamperer", "attack_actively"]

_RECEIPT_END_BYTES, _INJECTED = 2048, bytes(64)

Pieces = Iterator[memoryview | bytes]


@dataclass(slots=True)
class Recorded:
    """One honest exchange, both directions."""

    request: bytearray = field(default_factory=bytearray, repr=False)
    reply: bytearray = field(default_factory=bytearray, repr=False)


@dataclass(frozen=True, slots=True)
class ActiveFigures:
    """How many manipulations of each kind were accepted, and by which codes the others were refused on the device."""

    by_kind: Mapping[str, Rate]
    refusals: Mapping[str, int] = field(default_factory=dict)

    @property
    def accepted(self) -> Rate:
        """Return the share of all manipulations that was accepted."""
        return sum(self.by_kind.values(), Rate(0, 0))

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "accepted": self.accepted.to_json(),
            "by_kind": {name: rate.to_json() for name, rate in self.by_kind.items()},
            "refusals": dict(self.refusals),
        }


class Tamperer:
    """A `Cloud` in front of another: hands calls on and records them, or does one thing to the next one with contents.

    `has_acted` tells whether it found the occasion.
    """

    def __init__(self, *, seed: int) -> None:
        self._draw = random.Random(seed)
        self._cloud: Cloud | None = None
        self.recorded = Recorded()
        self.impostor: Cloud | None = None
        self.kind: str | None = None
        self.has_acted = False

    def before(self, cloud: Cloud) -> Cloud:
        """Stand in front of a cloud."""
        self._cloud = cloud
        return self

    def arm(self, kind: str | None) -> None:
        """Do this in the next run; None hands everything on and records it."""
        self.kind, self.has_acted = kind, False
        if kind is None:
            self.recorded = Recorded()

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Answer one call, by the cloud or in its place."""
        if self._cloud is None:
            raise UsageError("a tamperer stands in front of a cloud; call before() first")
        if route is Route.KEYSET:
            return self._keyset(self._cloud, body)
        if self.kind is None:
            reply = self._cloud.handle(route, _Source(body, self.recorded.request.extend))
            return CloudReply(reply.body_bytes, _Changed(reply.body, self._record))
        if self.kind == "request changed":
            changed = _Source(body, lambda _data: None, flip_at=self._place(self.recorded.request))
            return self._handed_on(self._cloud, route, changed)
        reply = self._cloud.handle(route, body)
        return CloudReply(reply.body_bytes, _Changed(reply.body, self._changer(self.kind)))

    def replay(self, route: Route) -> bool:
        """Send the recorded request to the cloud once more; tell whether it was worked on."""
        if self._cloud is None or not self.recorded.request:
            raise UsageError("there is no recorded request to play again; run honestly first")
        body = None
        try:
            reply = self._cloud.handle(route, _Replayed(bytes(self.recorded.request)))
            body = reply.body
            return bool(len(next(body, b"")))
        except SplitInferError:
            return False
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()

    def _handed_on(self, cloud: Cloud, route: Route, changed: _Source) -> CloudReply:
        try:
            return cloud.handle(route, changed)
        finally:
            self.has_acted = self.has_acted or changed.has_flipped

    def _keyset(self, cloud: Cloud, body: Source) -> CloudReply:
        if self.kind == "another cloud's keyset" and self.impostor is not None:
            self.has_acted = True
            return self.impostor.handle(Route.KEYSET, body)
        reply = cloud.handle(Route.KEYSET, body)
        if self.kind != "keyset changed":
            return reply
        whole = bytearray().join(bytes(piece) for piece in reply.body)
        _flip(whole, self._draw.randrange(len(whole)), self._draw)
        self.has_acted = True
        return CloudReply(reply.body_bytes, iter([bytes(whole)]))

    def _record(self, sent: int, piece: bytes) -> bytes:
        del sent
        self.recorded.reply += piece
        return piece

    def _place(self, recorded: bytearray) -> int:
        return self._draw.randrange(max(1, len(recorded)))

    def _changer(self, kind: str) -> Callable[[int, bytes], bytes]:
        """Return what is done to each piece of a reply, given how many bytes went before it."""
        old, at = bytes(self.recorded.reply), self._place(self.recorded.reply)
        start = max(0, len(old) - _RECEIPT_END_BYTES)

        def change(sent: int, piece: bytes) -> bytes:
            stop = sent + len(piece)
            if kind == "older reply" or (kind == "older receipt" and stop > start):
                first = sent if kind == "older reply" else max(sent, start)
                swapped = piece[: first - sent] + old[first:stop]
                self.has_acted = self.has_acted or swapped != piece
                return swapped
            if not sent <= at < stop:
                return piece
            self.has_acted = True
            if kind == "reply changed":
                changed = bytearray(piece)
                _flip(changed, at - sent, self._draw)
                return bytes(changed)
            return piece[: at - sent] if kind == "reply cut" else piece[: at - sent] + _INJECTED + piece[at - sent :]

        return change


MANIPULATIONS = (
    "request changed",
    "reply changed",
    "reply cut",
    "bytes injected",
    "older reply",
    "older receipt",
    "older request",
    "keyset changed",
    "another cloud's keyset",
)
"""What is done, each by itself."""


def attack_actively(
    policy: Policy, engine: Engine, prompt: EvaluationPrompt, *, attempts: int, params: SamplingParams, seed: int
) -> ActiveFigures | None:
    """Try every manipulation so often; None for a policy of which nothing crosses, or where nothing crossed."""
    if policy.mode is TrustMode.LOCAL or not attempts:
        return None
    # An attack is on one exchange: what follows a lost connection, or a refusal, is an exchange of its own.
    changes = {
        "transfer": policy.transfer.model_copy(update={"resume_attempts": 0}),
        "fallback": policy.fallback.model_copy(update={"on_remote_failure": "refuse"}),
    }
    tamperer = Tamperer(seed=seed)
    found: dict[str, Rate] = {}
    refusals: Counter[str] = Counter()
    with (
        _impostor(engine) as tamperer.impostor,
        Stage.open(policy.model_copy(update=changes), engine, between=tamperer.before) as stage,
    ):
        run = partial(stage.run, prompt, params=params)
        tamperer.arm(None)
        run()
        if not tamperer.recorded.reply:
            return None
        for kind in MANIPULATIONS:
            for _ in range(attempts):
                found[kind] = found.get(kind, Rate(0, 0)) + _attempt(stage, tamperer, kind, run, refusals=refusals)
    return ActiveFigures(found, refusals)


def _attempt(
    stage: Stage,
    tamperer: Tamperer,
    kind: str,
    run: Callable[[], object],
    *,
    refusals: Counter[str],
) -> Rate:
    """Return one manipulation and whether it was accepted; nothing where it found no occasion."""
    if kind == "older request":
        return Rate(tamperer.replay(_route(stage.policy)), 1)
    if stage.policy.mode is TrustMode.MASKED:
        # A failed check destroys a pool, as it shall; each attempt is on a fresh one.
        shutil.rmtree(masks_folder(stage.device, stage.engine.identity), ignore_errors=True)
    tamperer.arm(kind)
    try:
        run()
    except UsageError:
        raise
    except SplitInferError as error:
        refusals[error.code] += 1
        return Rate(0, 1) if tamperer.has_acted else Rate(0, 0)
    return Rate(1, 1) if tamperer.has_acted else Rate(0, 0)


def _route(policy: Policy) -> Route:
    row = MODES[policy.mode]
    if row.protection != "sealed":
        return Route.SESSION
    return Route.DECODE if row.decode == "cloud" else Route.PREFILL


@contextmanager
def _impostor(engine: Engine) -> Iterator[Cloud]:
    """Run a cloud that is not the pinned one."""
    with Scratch.open() as scratch:
        cloud = scratch.service(CloudService, engine)
        try:
            yield cloud
        finally:
            cloud.close()


class _Source:
    """A body on its way up: seen, and with a bit of one byte flipped where a place is given."""

    def __init__(self, body: Source, see: Callable[[bytes], None], *, flip_at: int | None = None) -> None:
        self._body, self._see, self._flip_at = body, see, flip_at
        self._count = 0
        self.has_flipped = False

    @property
    def left_bytes(self) -> int:
        return int(getattr(self._body, "left_bytes", 0))

    def readinto(self, buffer: memoryview) -> int:
        count = self._body.readinto(buffer)
        self._see(bytes(buffer[:count]))
        at = self._flip_at
        if at is not None and self._count <= at < self._count + count:
            view = memoryview(buffer).cast("B")
            view[at - self._count] ^= 1
            self.has_flipped = True
        self._count += count
        return count


class _Replayed:
    """A recorded body."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    @property
    def left_bytes(self) -> int:
        return len(self._data)

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


class _Changed(Iterator[memoryview | bytes]):
    """The pieces of a reply, each as `change(bytes before it, piece)` makes it."""

    def __init__(self, body: Pieces, change: Callable[[int, bytes], bytes]) -> None:
        self._body, self._change, self._sent = body, change, 0

    def __next__(self) -> bytes:
        piece = bytes(next(self._body))
        changed = self._change(self._sent, piece)
        self._sent += len(piece)
        return changed

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def _flip(data: bytearray, at: int, draw: random.Random) -> None:
    data[at] ^= 1 << draw.randrange(8)
