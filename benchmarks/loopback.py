"""Two real processes on loopback, the product on both sides but for the model, for benchmarks of the data plane.

The cloud process runs `server.run.serve` with the product's `CloudService`; the device is whoever opened the `Pair`,
with the product's gate, exchange, transport and sink. No model of the sizes that are moved here runs on a small
machine, so a stand-in engine hands over a cache of random numbers for the prompt, and ends an answer at once. The
product wipes what it sent, so the cache is made anew before every transfer (`Pair.prepare`), outside of what is timed.

Beside the sealed form stands an unsealed one: the same door, the same client and the same sink, with the slabs as they
are. It exists here only, to compare with.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Self

import torch

from benchmarks.common import reset_peak, resident
from server.run import serve
from server.settings import make_settings
from splitinfer import codec, schedule
from splitinfer.asks import Ask, Common, decode_ask, prefill_ask
from splitinfer.attestation.keyset import identity_sha256
from splitinfer.cache.early_rows import EarlyRows
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import DTYPES, CacheSnapshot, shape_of
from splitinfer.cloud import CloudService
from splitinfer.egress.gate import Gate, Intent, Outcome, Permit
from splitinfer.exchange import Exchange
from splitinfer.handoff import (
    CacheLayout,
    CloudReply,
    LayerLayout,
    ModelIdentity,
    Numerics,
    ReleasedTransfer,
    Route,
    SamplingParams,
    Source,
    TensorLayout,
)
from splitinfer.home import Home
from splitinfer.home.audit_log import open_log, receipt_keeper
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.seen import SeenFile
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.reading import read_exact
from splitinfer.sealing.manifest import ModelWire, NumericsWire
from splitinfer.transport.http import HttpTransport

__all__ = ["MODES", "Pair", "RandomCache", "StandInEngine", "attention_layout", "cache_bytes"]

Mode = Literal["sealed", "unsealed", "http"]
MODES: tuple[Mode, ...] = ("sealed", "unsealed", "http")

MAX_TOKENS = 1 << 20
VOCABULARY = 1 << 15
MODEL = ModelIdentity("1" * 64, "2" * 64, "3" * 64)
NUMERICS = Numerics(torch.__version__, "cpu", "bfloat16", "sdpa", 1)
_PIECE_BYTES = 1 << 20
_RANDOM_ELEMENTS = 1 << 23


def attention_layout(*, layers: int, heads: int, dim: int, dtype: str = "bfloat16") -> CacheLayout:
    """Return the layout of full attention layers, all alike."""
    parts = tuple(TensorLayout(name, dtype, "tokens", (heads,), (dim,)) for name in ("keys", "values"))
    return CacheLayout((LayerLayout("full", parts),) * layers)


def cache_bytes(layout: CacheLayout, tokens: int) -> int:
    """Return the bytes of a padded cache in codec `raw`."""
    return sum(slab.size_bytes for slab in schedule.slabs(layout, schedule.pad_tokens(tokens)))


class RandomCache:
    """A cache of random numbers whose memory is filled again, not taken anew, after the product wiped it."""

    def __init__(self, layout: CacheLayout, tokens: int) -> None:
        self.layout, self.tokens = layout, tokens
        self._random = torch.empty(_RANDOM_ELEMENTS, dtype=torch.int16).random_(-0x3F00, 0x3F00)
        self._layers = tuple(
            {part.name: torch.empty(shape_of(layer, part, tokens), dtype=DTYPES[part.dtype]) for part in layer.tensors}
            for layer in layout.layers
        )

    def filled(self) -> CacheSnapshot:
        """Fill the memory and return it as a snapshot. The bit patterns are finite numbers."""
        for layer in self._layers:
            for tensor in layer.values():
                flat = tensor.view(-1).view(torch.int16)
                for start in range(0, flat.numel(), _RANDOM_ELEMENTS):
                    piece = flat[start : start + _RANDOM_ELEMENTS]
                    piece.copy_(self._random[: piece.numel()])
        return CacheSnapshot(self.layout, self.tokens, self._layers)


class _EndsAtOnce:
    """A decoding that ends before its first token."""

    finish_reason, tail, text, token_ids = "length", "", "", ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, str]:
        raise StopIteration

    def close(self) -> None:
        """Do nothing: nothing grew."""


class StandInEngine:
    """What `CloudService` asks of an engine, without a model."""

    identity, numerics, max_positions, vocabulary, parameters = MODEL, NUMERICS, MAX_TOKENS, VOCABULARY, 0

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self._cache: RandomCache | None = None
        self.snapshot: CacheSnapshot | None = None

    def prepare(self, tokens: int) -> None:
        """Make the cache that the next prefill hands over."""
        if self._cache is None or self._cache.tokens != tokens:
            self.snapshot = self._cache = None
            self._cache = RandomCache(self.layout, tokens)
        self.snapshot = self._cache.filled()

    def start_prefill(
        self, _token_ids: Sequence[int], *, steps: Sequence[tuple[int, int]], padded_tokens: int, **_: object
    ) -> GrowingCache:
        """Hand over the cache that was prepared, as one that has grown already."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.true_tokens != steps[-1][1]:
            raise RuntimeError("prepare a cache of as many tokens first, and prefill them in one step")
        rule = EarlyRows.of(self.layout, padded_tokens=padded_tokens, steps=steps)
        return GrowingCache(rule, lambda _: snapshot, true_tokens=snapshot.true_tokens)

    def burn(self, tokens: int) -> None:
        """Do nothing."""

    def decode(self, _snapshot: CacheSnapshot, **_: object) -> _EndsAtOnce:
        """End at once."""
        return _EndsAtOnce()


class _Clouds:
    """The product's service behind a door, or, where that is asked for, slabs as they are behind the same one."""

    def __init__(self, service: CloudService, engine: StandInEngine) -> None:
        self._service, self._engine = service, engine
        self.mode: Mode = "sealed"
        self.tokens = 0

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Answer one call."""
        if route is Route.KEYSET or self.mode == "sealed":
            return self._service.handle(route, body)
        if route is Route.DECODE:
            return self._take(body)
        while body.readinto(memoryview(bytearray(4096))):
            pass
        if self.mode == "http":
            total = cache_bytes(self._engine.layout, self.tokens)
            return CloudReply(total, _same_piece(total))
        if self._engine.snapshot is None:
            raise RuntimeError("prepare a cache first")
        packed = codec.pack(self._engine.snapshot, codec="raw", padded_tokens=schedule.pad_tokens(self.tokens))
        return CloudReply(packed.size_bytes, packed.slabs())

    def _take(self, body: Source) -> CloudReply:
        if self.mode == "http":
            buffer = memoryview(bytearray(_PIECE_BYTES))
            while body.readinto(buffer):
                pass
        else:
            fill(_sink(self._engine.layout, self.tokens), body)
        return CloudReply(2, iter([b"ok"]))


def _sink(layout: CacheLayout, tokens: int) -> codec.CacheSink:
    return codec.sink(layout, codec="raw", true_tokens=tokens, padded_tokens=schedule.pad_tokens(tokens))


def fill(sink: codec.CacheSink, source: Source) -> CacheSnapshot:
    """Read a cache from its slabs as they are."""
    for _ in sink.sizes():
        read_exact(source, sink.slab())
    return sink.finish()


def _same_piece(total: int) -> Iterator[memoryview]:
    piece = memoryview(bytearray(secrets.token_bytes(1 << 16) * (_PIECE_BYTES >> 16)))
    for start in range(0, total, _PIECE_BYTES):
        yield piece[: total - start]


# --- the cloud process ----------------------------------------------------------------------------------------------


def _cloud_process(orders: Connection, layout: CacheLayout, folder: str) -> None:
    """Serve until told to stop; `orders` carries what the next transfer is to be."""
    torch.set_num_threads(1)
    home, engine = Home(Path(folder)), StandInEngine(layout)
    replica = make_replica(home)
    service = CloudService(
        engine,  # type: ignore[arg-type]
        replica,
        allowed=lambda: allowed_devices(home),
        clock=time.time,
        randomness=secrets.token_bytes,
    )
    clouds, stop = _Clouds(service, engine), threading.Event()
    pin = identity_sha256(bytes.fromhex(replica.current().keyset.certificate.body.identity))
    listener = threading.Thread(target=_obey, args=(orders, clouds, engine, stop), daemon=True)

    def ready(host: str, port: int) -> None:
        orders.send((f"http://{host}:{port}", pin))
        listener.start()

    settings = make_settings({"port": 0, "read_timeout_seconds": 600.0, "drain_seconds": 1.0})
    serve(clouds, settings, ready=ready, log_stream=io.StringIO(), stop=stop)


def _obey(orders: Connection, clouds: _Clouds, engine: StandInEngine, stop: threading.Event) -> None:
    while True:
        try:
            order = orders.recv()
        except EOFError:
            order = None
        if order is None:
            stop.set()
            return
        if order != "figures":
            clouds.mode, clouds.tokens, has_cache = order
            if has_cache:
                engine.prepare(clouds.tokens)
            with contextlib.suppress(OSError):
                reset_peak()
        orders.send((time.process_time(), resident()))


# --- the device -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timed:
    """One transfer: seconds on the clock, CPU seconds of both processes, and what was received."""

    seconds: float
    device_cpu_seconds: float
    cloud_cpu_seconds: float
    snapshot: CacheSnapshot | None = field(default=None, repr=False)


class Pair:
    """A cloud process and the device that is paired with it; a context manager."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        base = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="splitinfer-bench-")))
        cloud, self._home = Home(base / "cloud"), Home(base / "device")
        cloud.key("identity")
        self._key = self._home.key("device")
        allow_device(cloud, self._key.public_key().public_bytes_raw().hex())
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_cloud_process, args=(theirs, self.layout, str(cloud.path)), daemon=True)
        self._process.start()
        theirs.close()
        self._stack.callback(self._stop)
        self.url, self._pin = self._orders.recv()
        self._transport = HttpTransport(self.url, read_timeout_seconds=600.0)
        self._log = open_log(self._home)
        self._stack.callback(self._log.close)
        self._gate = Gate(self._log, keep_receipt=receipt_keeper(self._home))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, tokens: int, *, mode: Mode = "sealed", has_cache: bool = True) -> None:
        """Tell the cloud what comes next, and let it make its cache anew."""
        self._orders.send((mode, tokens, has_cache))
        self._orders.recv()

    def cloud_figures(self) -> tuple[float, tuple[int, int]]:
        """Return the cloud's CPU seconds, and its resident bytes now and at most since `prepare`."""
        self._orders.send("figures")
        figures: tuple[float, tuple[int, int]] = self._orders.recv()
        return figures

    def receive(self, tokens: int, *, mode: Mode = "sealed") -> Timed:
        """Move a cache from the cloud to this process."""
        self.prepare(tokens, mode=mode, has_cache=mode != "http")
        if mode == "sealed":
            ask = prefill_ask(self._common(), tuple(index % VOCABULARY for index in range(tokens)), ((0, tokens),))
            return self._timed(lambda permit: self._sealed(permit, ask), ask)
        return self._timed(lambda _: self._plain_receive(tokens, mode))

    def send(self, snapshot: CacheSnapshot, *, mode: Mode = "sealed") -> Timed:
        """Move a cache from this process to the cloud; the sealed form wipes the snapshot."""
        tokens = snapshot.true_tokens
        self.prepare(tokens, mode=mode, has_cache=False)
        packed = codec.pack(snapshot, codec="raw", padded_tokens=schedule.pad_tokens(tokens))
        if mode == "sealed":
            params = SamplingParams(max_new_tokens=1)
            ask = decode_ask(self._common(), packed, steps=((0, tokens),), last_token=0, params=params)
            return self._timed(lambda permit: self._sealed(permit, ask), ask)
        total = packed.size_bytes
        return self._timed(
            lambda _: self._plain_send(total, packed.slabs() if mode == "unsealed" else _same_piece(total))
        )

    def _timed(self, work, ask: Ask | None = None) -> Timed:  # type: ignore[no-untyped-def]
        with self._permitted(ask) if ask else contextlib.nullcontext() as permit:
            cloud_before = self.cloud_figures()[0]
            cpu, began = time.process_time(), time.perf_counter()
            snapshot = work(permit)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            return Timed(seconds, cpu, self.cloud_figures()[0] - cloud_before, snapshot)

    @contextlib.contextmanager
    def _permitted(self, ask: Ask) -> Iterator[Permit]:
        permit = self._gate.open(
            Intent(
                mode="sealed-prefill" if ask.route is Route.PREFILL else "sealed-decode",
                policy_sha256="4" * 64,
                recipient_identity_sha256=self._pin,
                protection="sealed",
                codec="raw",
                tokens_bucket=ask.manifest.tokens.padded,
                bytes_up_bound=ask.bytes_up_bound,
                fields_in_clear=(),
            )
        )
        try:
            yield permit
        finally:
            permit.close(Outcome("completed"))

    def _sealed(self, permit: Permit, ask: Ask) -> CacheSnapshot | None:
        """Do what `flow` does with a permit: keyset, request, reply, receipt."""
        exchange = Exchange(
            permit,
            self._transport,
            device_key=self._key,
            expected=Expectations(MODEL, self.layout, MAX_TOKENS, VOCABULARY),
            clock=time.time,
            randomness=secrets.token_bytes,
        )
        try:
            recipient = exchange.appraise(pinned_sha256=self._pin, seen=SeenFile(self._home))
            reply = exchange.send(ask, recipient)
            if ask.route is Route.PREFILL:
                return exchange.receive_cache(reply, _sink(self.layout, ask.manifest.tokens.true))
            for _ in exchange.receive_frames(reply):
                pass
            return None
        finally:
            exchange.close()

    def _plain_receive(self, tokens: int, mode: Mode) -> CacheSnapshot | None:
        reply = self._transport.exchange(_released(Route.PREFILL, 1, iter([b"?"])))
        try:
            if mode == "unsealed":
                return fill(_sink(self.layout, tokens), reply)
            buffer = memoryview(bytearray(_PIECE_BYTES))
            while reply.readinto(buffer):
                pass
            return None
        finally:
            reply.close()

    def _plain_send(self, total: int, pieces: Iterator[memoryview]) -> None:
        reply = self._transport.exchange(_released(Route.DECODE, total, pieces))
        while reply.readinto(memoryview(bytearray(16))):
            pass
        reply.close()

    def _common(self) -> Common:
        return Common(
            policy_sha256="4" * 64,
            codec="raw",
            pad="padme",
            session_id="6" * 32,
            model=ModelWire.of(MODEL),
            numerics=NumericsWire.of(NUMERICS),
        )

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._orders.send(None)
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()


class _Meter:
    """Counts nothing."""

    def received(self, data: memoryview | bytes) -> None:
        """Do nothing."""


def _released(route: Route, body_bytes: int, body: Iterator[memoryview | bytes]) -> ReleasedTransfer:
    # Past the gate, which releases sealed bodies only: this is the unsealed form, of random numbers.
    return ReleasedTransfer(route, body_bytes, body, "", _Meter())
