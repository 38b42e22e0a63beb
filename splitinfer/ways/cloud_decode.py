"""`sealed-decode`: prefill here, cache up while it grows, tokens down; Run -> text pieces; on the device.

Only verified frames are shown. `noised` sends rows and caches of its own the same way.
"""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer import codec, schedule
from splitinfer.asks import Place, decode_ask
from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.errors import SessionLostError, TransportError
from splitinfer.model.embeddings import Rows
from splitinfer.sealing.frames import FrameKind
from splitinfer.ways.run import Run

__all__ = ["cloud_decode", "decoded_by_cloud", "prefilled_then_decoded"]

# Well within the silence of 30 s that a cloud bears by default.
PAUSE_SECONDS = 20.0


def cloud_decode(run: Run) -> Iterator[str]:
    """Run `sealed-decode`."""
    yield from prefilled_then_decoded(run, rows=None)


def prefilled_then_decoded(run: Run, *, rows: Rows | None) -> Iterator[str]:
    """Prefill here, cache up while it grows, tokens down; `rows` stand in for the tokens' own embeddings."""
    place, steps = run.recall.decode_place(), run.steps_on_held()
    onto, is_exact = run.recall.cache, run.progress.is_exact
    if not steps and onto is not None:
        run.device.engine.burn(schedule.pad_new_tokens(onto.true_tokens, place.base_tokens) - onto.true_tokens)
        yield from decoded_by_cloud(run, onto, place)
        return
    progress = run.device.prefill_progress(len(run.prompt.token_ids) - 1)
    with run.device.engine.start_prefill(
        run.prompt.token_ids, steps=steps, onto=onto, base_tokens=place.base_tokens, progress=progress, rows=rows
    ) as growing:
        run.progress.growing = growing
        try:
            growing.settle(pause_seconds=PAUSE_SECONDS)
            yield from decoded_by_cloud(run, growing, place)
        except TransportError:
            if rows is None and run.may_fall_back():
                growing.snapshot()
            raise
        finally:
            if growing.is_over:
                snapshot = growing.hand_over()
                if rows is not None or not run.remember(snapshot, is_exact=is_exact):
                    wipe(snapshot)


def decoded_by_cloud(run: Run, cache: CacheSnapshot | GrowingCache, place: Place) -> Iterator[str]:
    """Cache up, from the place's base on, tokens down; all of it again where the cloud lost the session."""
    try:
        yield from _sent_to_decode(run, cache, place)
    except SessionLostError:
        place = run.anew(place)
        whole = cache.snapshot() if isinstance(cache, GrowingCache) else cache
        run.device.engine.burn(schedule.pad_tokens(whole.true_tokens) - whole.true_tokens)
        yield from _sent_to_decode(run, whole, place)


def _sent_to_decode(run: Run, cache: CacheSnapshot | GrowingCache, place: Place) -> Iterator[str]:
    ids, plan = run.prompt.token_ids, run.plan
    packed = codec.pack(
        cache,
        codec=run.calls.codec,
        padded_tokens=schedule.pad_new_tokens(cache.true_tokens, place.base_tokens),
        base_tokens=place.base_tokens,
        is_shared=True,
        artefact=run.device.artefact,
    )
    stream = run.device.engine.text_stream(run.params.stop)
    run.recall.sends(place)
    try:
        ask = decode_ask(
            run.calls.common(), packed, steps=plan.steps, last_token=ids[-1], params=run.params, place=place
        )
        with run.calls.permitted(ask) as exchange:
            reply = run.calls.send(exchange, ask)
            for frame in exchange.receive_frames(reply):
                for token_id in frame.token_ids:
                    run.progress.saw_token(token_id)
                    yield stream.push(token_id)
                if frame.kind is FrameKind.END:
                    run.progress.finish_reason = frame.finish_reason
    finally:
        packed.wipe()
    run.recall.received(place, exchange.receipt)
    run.progress.base_tokens = place.base_tokens
    yield stream.finish()
