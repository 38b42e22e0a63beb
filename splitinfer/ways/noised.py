"""`noised-decode` and `noised-prefill`: charge, noise, then what leaves is noised; Run -> text pieces; on the device.

It is paid for and drawn once a run, and nothing of it is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer import schedule
from splitinfer.asks import rows_ask
from splitinfer.cache.snapshot import wipe
from splitinfer.noised import release
from splitinfer.noised_cache import charge_cache, noises_cache
from splitinfer.row_check import RowCheck
from splitinfer.ways.cloud_decode import decoded_by_cloud, prefilled_then_decoded
from splitinfer.ways.received import receive
from splitinfer.ways.run import Run

__all__ = ["noised_decode", "noised_prefill"]


def noised_decode(run: Run) -> Iterator[str]:
    """Pay and draw once, then as `sealed-decode` on the rows that came of it; nothing of it is remembered."""
    if noises_cache(run.device.policy):
        yield from _noised_cache_decode(run)
        return
    noised = release(run.device, run.prompt)
    run.progress.certificate = noised.certificate
    yield from prefilled_then_decoded(run, rows=noised.rows)


def _noised_cache_decode(run: Run) -> Iterator[str]:
    """Pay once, prefill as `local` does, noise the finished cache; nothing leaves while it grows."""
    charged = charge_cache(run.device, run.prompt)
    run.progress.certificate = charged.certificate
    exact = run.prefill(run.plan.steps)
    try:
        noised = charged.noised(exact)
    finally:
        wipe(exact)
    try:
        run.device.engine.burn(schedule.pad_tokens(noised.true_tokens) - noised.true_tokens)
        yield from decoded_by_cloud(run, noised, run.recall.decode_place())
    finally:
        wipe(noised)


def noised_prefill(run: Run) -> Iterator[str]:
    """Pay and draw once, noised rows up, their cache down, decode here; the last token, as it is, stays here."""
    noised, plan = release(run.device, run.prompt), run.plan
    run.progress.certificate = noised.certificate
    rows = run.device.engine.rows_to(noised.rows[: plan.prefix_tokens])
    ask = rows_ask(run.calls.common(), rows, plan.cloud_steps, tokens=plan.prefix_tokens)
    with run.calls.permitted(ask) as exchange:
        reply = run.calls.send(exchange, ask)
        snapshot = receive(run, exchange, reply, ask=ask, rows=RowCheck(run.device, run.prompt.token_ids), base=None)
    run.progress.prefilled_by_cloud_tokens = plan.prefix_tokens
    yield from run.decode_here(snapshot)
