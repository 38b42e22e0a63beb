"""The caches that the cloud keeps between the turns of a session: (device key, session id) -> snapshot; cloud side.

Memory only. A turn takes its session out of the table, so that no two turns can go on from one cache, and puts the
longer cache back when its reply is over; whatever fails between wipes it. What is idle too long, or over the limits,
is wiped: of the device that holds the most, the least recently used first, so that no device pushes out others' by
opening sessions.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from splitinfer.cache.memory import memory_bytes
from splitinfer.cache.snapshot import CacheSnapshot, cut, wipe
from splitinfer.errors import ReplayError, SessionLostError, UnsupportedCacheError
from splitinfer.sealing.manifest import ModelWire, RequestManifest, SessionWire

__all__ = ["SessionLimits", "Sessions", "Turn"]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions are kept, of how many bytes together, and for how long after their last turn."""

    max_sessions: int = 64
    max_bytes: int = 4 * 1024**3
    idle_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class _Held:
    turn: int
    root: str
    model: ModelWire
    snapshot: CacheSnapshot = field(repr=False)
    size_bytes: int
    used_at: float


_Key = tuple[bytes, str]


class Sessions:
    """The session cache; safe for several threads. `model` is the one that fills it."""

    def __init__(self, limits: SessionLimits, *, model: ModelWire, clock: Callable[[], float]) -> None:
        self._limits, self._model, self._clock = limits, model, clock
        self._held: OrderedDict[_Key, _Held] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        """Return how many sessions are held."""
        with self._lock:
            return len(self._held)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of memory that they take."""
        with self._lock:
            return sum(held.size_bytes for held in self._held.values())

    def begin(self, sender: bytes, manifest: RequestManifest) -> Turn:
        """Take a session out of the table for one turn; a first turn starts anew, and forgets what was held before.

        Raises SessionLostError where nothing is held, ReplayError where the turn, its parent, its base or its model is
        not the one that goes on from what is held; that is then wiped.
        """
        session = manifest.session
        key = (sender, session.session_id)
        self.drop_expired()
        if manifest.public:
            return Turn(self, key, manifest, None)
        held = self._take(key)
        if session.turn == 0:
            if held is not None:
                wipe(held.snapshot)
            return Turn(self, key, manifest, None)
        if held is None:
            raise SessionLostError("nothing is held of this session any more; send everything again")
        try:
            base = _continued(held, session, manifest.model)
        except ReplayError:
            wipe(held.snapshot)
            raise
        return Turn(self, key, manifest, base)

    def forget(self, sender: bytes, session_id: str) -> None:
        """Wipe what is held of a session; nothing is no error."""
        held = self._take((sender, session_id))
        if held is not None:
            wipe(held.snapshot)

    def drop_expired(self) -> None:
        """Wipe what was idle for too long."""
        oldest = self._clock() - self._limits.idle_seconds
        with self._lock:
            for key in [key for key, held in self._held.items() if held.used_at <= oldest]:
                wipe(self._held.pop(key).snapshot)

    def close(self) -> None:
        """Wipe everything and keep nothing from now on."""
        with self._lock:
            self._is_closed = True
            while self._held:
                wipe(self._held.popitem()[1].snapshot)

    def put(self, key: _Key, session: SessionWire, snapshot: CacheSnapshot, *, root: str) -> bool:
        """Keep a cache for the turn after this one; False, and the cache is the caller's, where there is no room."""
        held = _Held(session.turn, root, self._model, snapshot, memory_bytes(snapshot), self._clock())
        limits = self._limits
        with self._lock:
            if self._is_closed or not limits.max_sessions or held.size_bytes > limits.max_bytes:
                return False
            replaced = self._held.pop(key, None)
            if replaced is not None:
                wipe(replaced.snapshot)
            self._held[key] = held
            while len(self._held) > limits.max_sessions:
                self._drop_oldest(lambda _: 1)
            while self._sum_bytes() > limits.max_bytes:
                self._drop_oldest(lambda one: one.size_bytes)
        return True

    def _drop_oldest(self, weight: Callable[[_Held], int]) -> None:
        """Wipe the least recently used session of the device whose sessions weigh the most."""
        weights: Counter[bytes] = Counter()
        for (sender, _), held in self._held.items():
            weights[sender] += weight(held)
        # Of devices that weigh the same, the one with the oldest session: counters keep the order of what came first.
        heaviest = max(weights, key=weights.__getitem__)
        key = next(key for key in self._held if key[0] == heaviest)
        wipe(self._held.pop(key).snapshot)

    def _sum_bytes(self) -> int:
        return sum(held.size_bytes for held in self._held.values())

    def _take(self, key: _Key) -> _Held | None:
        with self._lock:
            return self._held.pop(key, None)


class Turn:
    """One turn that has its session to itself: `base` is the cache that it goes on from, None where it starts anew."""

    def __init__(self, sessions: Sessions, key: _Key, manifest: RequestManifest, base: CacheSnapshot | None) -> None:
        self._sessions, self._key, self._session, self.base = sessions, key, manifest.session, base

    def keep(self, snapshot: CacheSnapshot, *, root: str) -> bool:
        """Keep the cache of this turn, whose request has that ciphertext root, where the device lets; else False."""
        return self._session.keep and self._sessions.put(self._key, self._session, snapshot, root=root)

    def drop_base(self) -> None:
        """Wipe the cache that this turn went on from; the longer one has taken its place, or the turn failed."""
        if self.base is not None:
            wipe(self.base)
        self.base = None


def _continued(held: _Held, session: SessionWire, model: ModelWire) -> CacheSnapshot:
    expected = (held.turn + 1, held.root, held.model)
    if (session.turn, session.parent_root, model) != expected or session.base_tokens > held.snapshot.true_tokens:
        raise ReplayError("the turn does not go on from the one that is held; send everything again")
    try:
        return cut(held.snapshot, session.base_tokens)
    except UnsupportedCacheError:
        raise ReplayError("the cache that is held cannot be cut to the turn's base; send everything again") from None
