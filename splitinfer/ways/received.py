"""A cache that comes back: OpenedReply -> CacheSnapshot, or a `Part` where its connection was lost; on the device."""

from __future__ import annotations

import time

from splitinfer import codec
from splitinfer.asks import Ask
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.codec.sinks import CacheSink
from splitinfer.errors import TransportError
from splitinfer.exchange import Exchange
from splitinfer.partial import salvage
from splitinfer.receive.replies import OpenedReply
from splitinfer.row_check import RowCheck
from splitinfer.selector import opening_seconds
from splitinfer.ways.run import Run
from trust_models.codecs import CALIBRATED
from trust_models.modes import MODES

__all__ = ["receive"]


def receive(
    run: Run,
    exchange: Exchange,
    reply: OpenedReply,
    *,
    ask: Ask,
    rows: RowCheck,
    base: CacheSnapshot | None,
) -> CacheSnapshot:
    """Receive and check the cache that was asked for, `base` being its first rows.

    Raises TransportError where the connection is lost for good; what may be used of it is then the run's `part`.
    """
    tokens = ask.manifest.tokens
    sink = codec.sink(
        run.device.engine.layout,
        codec=reply.manifest.codec,
        true_tokens=tokens.true,
        padded_tokens=tokens.padded,
        coded_bytes=reply.manifest.coded_bytes,
        base=base,
        artefact=run.device.artefact,
    )
    try:
        began = time.perf_counter()
        received = exchange.receive_cache(reply, sink)
        _learn(run, sink.size_bytes, tokens.padded - ask.manifest.session.base_tokens, began, reply.manifest.codec)
        return received
    except TransportError:
        _salvage(run, exchange, sink, rows, base_tokens=base.true_tokens if base else 0)
        raise


def _learn(run: Run, size_bytes: int, tokens: int, began: float, codec_name: str) -> None:
    """Tell the chooser how fast that was: the cloud's prefill and the link, which cannot be told apart exactly."""
    if run.device.chooser is None:
        return
    seconds = max(time.perf_counter() - began, 1e-6)
    cloud = max(run.device.chooser.speeds().cloud_tokens_per_second, tokens / seconds)
    known = run.device.chooser.speeds()
    other = tokens / cloud + opening_seconds(size_bytes, known)
    other += tokens * known.codec_seconds_per_token if codec_name in CALIBRATED else 0.0
    moving = max(seconds - other, seconds / 10)
    run.device.chooser.learn(
        {"cloud_tokens_per_second": tokens / seconds, "link_bytes_per_second": size_bytes / moving}
    )


def _salvage(run: Run, exchange: Exchange, sink: CacheSink, rows: RowCheck, *, base_tokens: int) -> None:
    """Keep the verified steps of a cache whose connection was lost, where the device is about to take over."""
    if not run.may_fall_back() or MODES[run.plan.mode].is_noised:
        sink.wipe()
        return
    run.progress.part = salvage(
        sink,
        rows,
        steps=run.plan.cloud_steps,
        base_tokens=base_tokens,
        transfer_id=exchange.transfer_id,
        received_root=exchange.received_root,
    )
