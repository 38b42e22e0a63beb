"""`public-prefix` and `sealed-prefill`: tokens up, their cache down, the rest here; Run -> text pieces; device."""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer.asks import Place, prefill_ask
from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.conversation import Origin
from splitinfer.errors import SessionLostError
from splitinfer.reuse import Shelf, shelf_for
from splitinfer.row_check import RowCheck
from splitinfer.ways.received import receive
from splitinfer.ways.run import Run
from trust_models.modes import TrustMode

__all__ = ["cloud_prefill"]


def cloud_prefill(run: Run) -> Iterator[str]:
    """`public-prefix` and `sealed-prefill`: tokens up, cache down, the rest here."""
    if run.recall.held_tokens >= run.plan.prefix_tokens:
        run.recall.log()
        run.progress.base_tokens = run.recall.held_tokens
        yield from run.decode_here(run.prefill_on_held())
        return
    snapshot = _cloud_prefix(run)
    steps = tuple(step for step in run.plan.device_steps if step[0] >= snapshot.true_tokens)
    if steps:
        snapshot = run.prefill(steps, onto=snapshot)
    yield from run.decode_here(snapshot)


def _cloud_prefix(run: Run) -> CacheSnapshot:
    """Return the cache of what the cloud prefills: from the store, or from the cloud."""
    plan = run.plan
    rows = RowCheck(run.device, run.prompt.token_ids)
    rows.require_possible(plan.prefix_tokens)
    shelf = shelf_for(run.device, run.prompt, plan, notes=run.progress.notes)
    stored = shelf.find(rows) if shelf else None
    if stored is None:
        place = run.recall.prefill_place()
        try:
            return _prefilled_by_cloud(run, place, rows, shelf)
        except SessionLostError:
            return _prefilled_by_cloud(run, run.anew(place), rows, shelf)
    facts = stored.facts
    run.progress.is_exact, run.progress.is_reused = facts.is_exact, True
    run.progress.prefilled_by_cloud_tokens = plan.prefix_tokens
    run.progress.origin = Origin(facts.recipient, facts.transfer_id, facts.received_root)
    return stored.cache


def _prefilled_by_cloud(run: Run, place: Place, rows: RowCheck, shelf: Shelf | None) -> CacheSnapshot:
    """Ask the cloud; what was received and verified is stored, where there is a shelf for it."""
    plan, base = run.plan, run.device.conversation.cache(place.base_tokens)
    ask = prefill_ask(
        run.calls.common(),
        run.prompt.token_ids[: plan.prefix_tokens],
        plan.cloud_steps,
        place=place,
        is_public=plan.mode is TrustMode.PUBLIC_PREFIX,
    )
    held_exact = run.recall.held.is_exact if run.recall.held and base else True
    run.recall.sends(place)
    with run.calls.permitted(ask) as exchange:
        reply = run.calls.send(exchange, ask)
        run.progress.is_exact &= held_exact
        snapshot = receive(run, exchange, reply, ask=ask, rows=rows, base=base)
        rows.check(snapshot)
    run.recall.received(place, exchange.receipt)
    run.progress.base_tokens = place.base_tokens
    run.progress.prefilled_by_cloud_tokens = plan.prefix_tokens - place.base_tokens
    root, transfer_id = reply.reader.root().hex(), reply.sent.keys.transfer_id.hex()
    run.progress.origin = Origin(run.device.pinned_sha256, transfer_id, root)
    if shelf and not place.base_tokens:
        shelf.keep(
            snapshot,
            reply,
            generation=run.progress.generation,
            verified_rows=rows.wanted(snapshot),
            is_exact=run.progress.is_exact,
        )
    return snapshot
