"""Decides what runs where: Policy and PromptTokens -> Plan; on the device, pure, refuses by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from splitinfer.errors import EgressDeniedError, EmptyPromptError, PromptError, PromptTooLongError, UsageError
from splitinfer.handoff import Label, PromptTokens
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy

__all__ = ["Plan", "Step", "place", "prefill_steps", "prompt_labels"]

Step = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who computes which half-open token ranges. `steps` is `cloud_steps` followed by `device_steps`.

    `prefix_tokens` are prefilled by the cloud, of `total_tokens` in the prompt; `note` is for the user, or None.
    """

    mode: TrustMode
    steps: tuple[Step, ...]
    cloud_steps: tuple[Step, ...]
    device_steps: tuple[Step, ...]
    decode_on: Literal["device", "cloud"]
    prefix_tokens: int
    total_tokens: int
    note: str | None


def prefill_steps(segment_lengths: Sequence[int], chunk_tokens: int) -> tuple[Step, ...]:
    """Cut all tokens but the last at every segment boundary and every `chunk_tokens` within a segment.

    The same in every mode and for every label. Raises PromptError for fewer than two tokens or a negative length,
    UsageError for a chunk below one token.
    """
    if chunk_tokens < 1:
        raise UsageError("chunk_tokens is a number of tokens, 1 or more")
    if any(length < 0 for length in segment_lengths):
        raise PromptError("a segment has a negative length; count its tokens")
    if sum(segment_lengths) < 2:
        raise PromptError(
            "the prompt needs at least two tokens, one to prefill and one to decode from; write more text"
        )
    return tuple(_cuts(segment_lengths, chunk_tokens))


def _cuts(segment_lengths: Sequence[int], chunk_tokens: int) -> Iterator[Step]:
    last, end = sum(segment_lengths) - 1, 0
    for length in segment_lengths:
        first, end = end, end + length
        stop = min(end, last)
        for start in range(first, stop, chunk_tokens):
            yield start, min(start + chunk_tokens, stop)


def prompt_labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels that count for placement: whatever follows a private segment is private."""
    leading = 0
    while leading < len(labels) and labels[leading] is Label.PUBLIC:
        leading += 1
    return (Label.PUBLIC,) * leading + (Label.PRIVATE,) * (len(labels) - leading)


def place(policy: Policy, prompt: PromptTokens, *, max_positions: int, max_new_tokens: int) -> Plan:
    """Plan one run; counts are tokens.

    Raises EmptyPromptError and PromptError for a prompt that cannot run, PromptTooLongError where prompt and answer
    exceed `max_positions`, UsageError for `max_new_tokens` below one, EgressDeniedError where the mode sends public
    text and none stands first.
    """
    total = _require_fitting(prompt, max_positions=max_positions, max_new_tokens=max_new_tokens)
    steps = prefill_steps(prompt.segment_lengths, policy.transfer.chunk_tokens)
    prefix = _prefix_tokens(policy, prompt)
    row = MODES[policy.mode]
    return Plan(
        mode=policy.mode,
        steps=steps,
        cloud_steps=tuple(step for step in steps if step[1] <= prefix),
        device_steps=tuple(step for step in steps if step[1] > prefix),
        decode_on=row.decode,
        prefix_tokens=prefix,
        total_tokens=total,
        note=_note(prompt) if row.prefill == "cloud:public" else None,
    )


def _require_fitting(prompt: PromptTokens, *, max_positions: int, max_new_tokens: int) -> int:
    total = len(prompt.token_ids)
    if total == 0:
        raise EmptyPromptError("the prompt has no text; give a question, a document or a note")
    if sum(prompt.segment_lengths) != total or len(prompt.labels) != len(prompt.segment_lengths):
        raise PromptError(
            "the segments do not cover the prompt's tokens with one label each; tokenise the prompt again"
        )
    if max_new_tokens < 1:
        raise UsageError("max_new_tokens is a number of tokens, 1 or more")
    if total + max_new_tokens > max_positions:
        raise PromptTooLongError(
            f"{total} prompt tokens and {max_new_tokens} new ones are {total + max_new_tokens}, more than the model's "
            f"{max_positions} positions; shorten the prompt or ask for fewer new tokens"
        )
    return total


def _prefix_tokens(policy: Policy, prompt: PromptTokens) -> int:
    """Return how many tokens the cloud prefills; a placement that is not in the table lets nothing leave."""
    prefillable, where = len(prompt.token_ids) - 1, MODES[policy.mode].prefill
    if where == "device":
        return 0
    if where == "cloud":
        return prefillable
    prefix = min(prompt.leading_public_tokens, prefillable) if where == "cloud:public" else 0
    if prefix == 0:
        raise EgressDeniedError(
            f'mode "{policy.mode}" sends the public text that stands first, and this prompt starts with private text; '
            'put public documents (--public FILE) first, or use mode "local"'
        )
    return prefix


def _note(prompt: PromptTokens) -> str | None:
    counted = prompt_labels(prompt.labels)
    late = sum(own is not used for own, used in zip(prompt.labels, counted, strict=True))
    if not late:
        return None
    return (
        f"{late} public segment(s) after a private one are treated as private and stay on the device; "
        "put every public document before the first private text to let the cloud prefill it"
    )
