"""One noised release on the device: a prompt under a policy with [noise] -> rows that may be shown, and what they cost.

    conditions -> sensitivity -> sigma -> certificate -> charge in the log -> key -> noise -> rows

The conditions are those without which the price would be false: the model looks at token ids nowhere but in its input
embedding, and the token that the cloud feeds first is public. The charge is durable before any noise is drawn, whether
or not what follows succeeds; noise is drawn once for a charge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from splitinfer import schedule
from splitinfer.device import Device
from splitinfer.egress.records import Record
from splitinfer.errors import CryptoParameterError, EgressDeniedError, PolicyError, SplitInferError, UsageError
from splitinfer.handoff import PromptTokens
from splitinfer.model.embeddings import Rows
from splitinfer.model.engine import Engine
from splitinfer.noise.accounting import Adjacency, Limit, NoiseEvent, embedding_event, sigma_for
from splitinfer.noise.certificate import Certificate, certify
from splitinfer.noise.embedding import NoisedEmbeddings, TextRows, noise_embeddings
from splitinfer.noise.ledger import Charge, charge
from splitinfer.noise.sensitivity import Distance, ids_digest, largest_distance
from splitinfer.noise.stream import NoiseKey, NoiseStream
from trust_models.modes import MODES
from trust_models.noise import Noise

__all__ = ["NoisedPrompt", "pay", "release", "require_private", "with_public_end"]


@dataclass(frozen=True, slots=True)
class NoisedPrompt:
    """The rows [tokens, dim] of a whole prompt, the private ones noised, and the certificate of that release."""

    rows: Rows = field(repr=False)
    certificate: Certificate


def require_private(prompt: PromptTokens) -> None:
    """Raise EgressDeniedError where no private text is in the prompt."""
    if not prompt.private_positions:
        raise EgressDeniedError(
            'no text of this prompt is private, so there is nothing to noise; use mode "public-prefix" or "local"'
        )


def with_public_end(engine: Engine, prompt: PromptTokens, noise: Noise) -> PromptTokens:
    """Return the prompt with a last token that is no text: the template's own, or the policy's `first_token_text`.

    Raises PolicyError where there is neither.
    """
    if _ends_in_public(prompt):
        return prompt
    if noise.first_token_text is not None:
        prompt = engine.continued(prompt, noise.first_token_text)
    if not _ends_in_public(prompt):
        raise PolicyError(
            "the cloud would be given the last private token as it is, for this model's template ends in private text; "
            'write first_token_text = "\\n" or another public text in [noise]'
        )
    return prompt


def _ends_in_public(prompt: PromptTokens) -> bool:
    last = len(prompt.token_ids) - 1
    return bool(prompt.text_spans) and prompt.text_spans[-1][1] <= last


def release(device: Device, prompt: PromptTokens) -> NoisedPrompt:
    """Pay for one release and make it; where the cloud decodes, `prompt` is one that `with_public_end` returned.

    Raises UnsupportedModelError for a model that looks at token ids elsewhere, BudgetExceededError,
    UnsupportedEventError and CryptoParameterError as the ledger does, AuditLogError.
    """
    noise = device.policy.noise
    if noise is None:
        raise UsageError("this policy has no [noise]")
    device.engine.require_only_embeddings()
    ids = device.engine.text_token_ids
    table = device.engine.embedding_rows(ids)
    distance = _distance(device, ids, table)
    # The size class, so that neither the log nor sigma shows the exact count.
    tokens = schedule.pad_tokens(len(prompt.private_positions))
    sigma = _sigma(noise, distance, tokens)
    key = NoiseKey(device.randomness)
    certificate = _charged(device, noise, distance, sigma=sigma, tokens=tokens, key=key)
    rows = device.engine.embedding_rows(prompt.token_ids)
    positions = list(prompt.private_positions)
    noised: NoisedEmbeddings = noise_embeddings(
        rows[positions],
        sigma=sigma,
        stream=NoiseStream(key),
        post=noise.post,
        table=None if noise.post == "none" else TextRows(table),
    )
    rows[positions] = noised.rows
    return NoisedPrompt(rows, certificate)


def _distance(device: Device, ids: tuple[int, ...], table: Rows) -> Distance:
    weights, digest = device.engine.identity.weights_sha256, ids_digest(ids)
    found = device.distances.get(weights, digest) if device.distances else None
    if found is None:
        found = largest_distance(table)
        if device.distances:
            device.distances.put(weights, digest, found)
    return found


def _sigma(noise: Noise, distance: Distance, tokens: int) -> float:
    if noise.epsilon is None:
        return noise.sigma or 0.0
    adjacency = Adjacency(noise.adjacency_tokens)
    return sigma_for(distance, adjacency, epsilon=noise.epsilon, delta=noise.stated_delta, tokens=tokens)


def _charged(
    device: Device, noise: Noise, distance: Distance, *, sigma: float, tokens: int, key: NoiseKey
) -> Certificate:
    adjacency = Adjacency(noise.adjacency_tokens)
    event = embedding_event(distance, sigma=sigma, tokens=tokens, key_sha256=key.digest)
    certificate = certify(
        event,
        adjacency,
        delta=noise.stated_delta,
        post=noise.post,
        l2_sensitivity=event.mu(adjacency) * sigma,
        sensitivity_is_exact=distance.is_exact,
        sigma=sigma,
        measured=device.measured,
        answer_is_seen=MODES[device.policy.mode].decode == "cloud",
    )
    pay(device, noise, event, certificate, tokens=tokens)
    return certificate


def pay(device: Device, noise: Noise, event: NoiseEvent, certificate: Certificate, *, tokens: int) -> None:
    """Charge a release to its subject, durably; `tokens` is a size class. Raises as `release` does for the ledger."""
    policy, limit = device.policy, Limit(Adjacency(noise.adjacency_tokens), noise.budget, noise.stated_delta)
    wanted = Charge(noise.subject, event, limit)
    fields = {
        **certificate.record(),
        "mode": policy.mode.value,
        "policy_sha256": policy.digest,
        "tokens_bucket": tokens,
    }

    def build(records: Iterator[Record]) -> Record:
        return charge(records, wanted, fields=fields)

    try:
        device.gate.charge(build)
    except (PolicyError, CryptoParameterError) as error:
        _deny(device, error)
        raise


def _deny(device: Device, error: SplitInferError) -> None:
    device.gate.deny(error, mode=device.policy.mode.value, policy_sha256=device.policy.digest)
