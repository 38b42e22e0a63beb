"""`local`, and the device taking over: prefill here, decode here; Run -> text pieces; on the device."""

from __future__ import annotations

from collections.abc import Iterator

from splitinfer import schedule
from splitinfer.cache.snapshot import CacheSnapshot, wipe
from splitinfer.conversation import Origin
from splitinfer.partial import Part
from splitinfer.ways.run import Run
from trust_models.modes import TrustMode

__all__ = ["local"]


def local(run: Run) -> Iterator[str]:
    """Everything on the device; logged, so that absence from the log says something."""
    bucket = schedule.pad_tokens(len(run.prompt.token_ids))
    policy, part = run.device.policy, _part(run)
    run.device.gate.local(
        mode=TrustMode.LOCAL.value,
        policy_sha256=policy.digest,
        tokens_bucket=bucket,
        **(part.log_fields() if part else {}),
    )
    if part is not None:
        yield from run.decode_here(_rest_of(run, part))
        return
    run.progress.base_tokens = run.recall.held_tokens
    yield from run.decode_here(run.prefill_on_held())


def _part(run: Run) -> Part | None:
    """Return what a broken transfer brought, where that is more than the device holds anyway."""
    part = run.progress.part
    if part is not None and part.tokens <= run.recall.held_tokens:
        wipe(part.cache)
        return None
    return part


def _rest_of(run: Run, part: Part) -> CacheSnapshot:
    """Prefill here what a broken transfer did not bring."""
    run.progress.notes.append(part.note)
    run.progress.prefilled_by_cloud_tokens = part.new_tokens
    run.progress.base_tokens = part.base_tokens
    run.progress.origin = Origin(run.device.pinned_sha256, part.transfer_id, part.received_root)
    steps = part.left(run.plan.steps)
    return run.prefill(steps, onto=part.cache) if steps else part.cache
