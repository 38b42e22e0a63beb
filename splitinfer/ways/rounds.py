"""`homomorphic` and `masked`: prefill, then every step in rounds with the cloud; Run -> text pieces; on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from splitinfer.asks import Ask, rounds_ask
from splitinfer.cache.snapshot import wipe
from splitinfer.joint.link import RoundsLink
from splitinfer.joint.work import Work, work_for
from splitinfer.model.stepwise import Step
from splitinfer.ways.run import Run
from trust_models.modes import MODES

__all__ = ["in_rounds"]


def in_rounds(run: Run) -> Iterator[str]:
    """`homomorphic` and `masked`: prefill here, then every step together with the cloud."""
    progress = run.device.prefill_progress(len(run.prompt.token_ids) - 1)
    work = work_for(run.device, run.prompt, run.params, progress=progress)
    snapshot = None if work.prefills else run.prefill_on_held()
    run.progress.is_exact, run.progress.base_tokens = False, run.recall.held_tokens if snapshot else 0
    is_remembered = snapshot is not None and run.remember(snapshot, is_exact=True)
    try:
        with run.calls.carried(_rounds_ask(run, work), RoundsLink) as link:
            _begin_rounds(run, link, work)
            with work.begin(link.exchange, snapshot) as step:
                if snapshot is not None and not is_remembered:
                    wipe(snapshot)
                yield from _decode_by(run, step)
            link.finish()
    finally:
        if snapshot is not None and not is_remembered:
            wipe(snapshot)


def _rounds_ask(run: Run, work: Work) -> Ask:
    ask = rounds_ask(run.calls.common(), protection=MODES[run.plan.mode].protection, rounds_bytes=work.rounds_bytes)
    return replace(ask, packing=work.packing, bucket=work.tokens_bucket)


def _begin_rounds(run: Run, link: RoundsLink, work: Work) -> None:
    recipient = link.appraise(pinned_sha256=run.device.pinned_sha256, seen=run.device.seen)
    run.progress.generation = recipient.generation
    link.open(_rounds_ask(run, work), recipient)


def _decode_by(run: Run, step: Step) -> Iterator[str]:
    ids = run.prompt.token_ids
    decoding = run.device.engine.decode_by(step, last_token=ids[-1], position=len(ids) - 1, params=run.params)
    for token_id, piece in decoding:
        run.progress.saw_token(token_id)
        yield piece
    run.progress.finish_reason = decoding.finish_reason or ""
    yield decoding.tail
