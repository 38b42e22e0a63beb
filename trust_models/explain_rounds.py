"""Plain language about the modes that compute in rounds, `homomorphic` and `masked`: Policy -> text; no IO.

Read by `explain`, which has the sections that all modes share.
"""

from __future__ import annotations

from trust_models.measured import Measurement, measurements
from trust_models.modes import TrustMode
from trust_models.rounds import PROFILE_TEXTS, Homomorphic
from trust_models.schema import Policy

__all__ = ["ROUNDS_LEAVES", "ROUNDS_READERS", "ROUNDS_TURNS", "rounds_encoding", "rounds_fallback", "rounds_learns"]

ROUNDS_LEAVES = {
    TrustMode.HOMOMORPHIC: (
        "The keys and values of the prompt's cache, and for each token and layer a query and attention weights, as "
        "CKKS ciphertexts under a key that this device makes for the run and never sends; all of it sealed besides. "
        "Products come back as ciphertexts. Nothing that was decrypted goes back."
    ),
    TrustMode.MASKED: (
        "For each token the inputs of the large matrices, as numbers to which a one-time mask is added; sealed "
        "besides. Products come back, are checked and unmasked. Prompt, cache and answer stay on the device."
    ),
}
ROUNDS_READERS = {
    TrustMode.HOMOMORPHIC: (
        "Only this device, as long as the recipient follows the protocol. The recipient computes on what it cannot "
        "read."
    ),
    TrustMode.MASKED: "Only this device. The recipient computes on numbers that are masked.",
}
ROUNDS_TURNS = {
    TrustMode.HOMOMORPHIC: "Neither side keeps anything of a run: every turn sends everything again, under a new key.",
    TrustMode.MASKED: (
        "While a session is open, this device keeps the cache of its last prompt in memory, and wipes it when the "
        "session is closed. The recipient keeps nothing but which masks it has seen."
    ),
}


def rounds_learns(policy: Policy) -> str:
    """Return what the recipient learns besides ciphertexts or masked numbers."""
    both = (
        "Which device asks, when and how often; which model and which policy (by digest); how many tokens are made, "
        "and when each of them: timing shows every step."
    )
    if policy.mode is TrustMode.MASKED:
        return f"{both} The prompt's length it does not learn, and no exact token count of it. It sees a pool's number."
    length = "the prompt's length rounded up to a tile (not its exact token count)"
    if policy.homomorphic.linear == "cloud":
        length = "the prompt's exact token count, since it computes each token"
    public = (
        " The cache of the leading public texts lies with it in clear, and gives those texts away, and where they end."
        if policy.homomorphic.public == "plaintext"
        else ""
    )
    return f"{both} And {length}.{public}"


def rounds_encoding(policy: Policy) -> str:
    """Return how numbers are encoded, how strong that is, and what it costs."""
    if policy.mode is TrustMode.MASKED:
        return (
            "Weights and inputs are rounded to 16 bits and computed exactly in integers, so that the answer can be "
            f"another than in mode local. One mask a token, from a pool of at most {policy.masked.max_bytes:,} bytes "
            "in the state folder. A pool that was copied or put back is refused by an anchor outside the state folder, "
            "or by what the recipient has seen. A whole machine put back to an earlier state is not found if the "
            "recipient lies about that; its masks would then be used twice, and show the difference of two activations."
        )
    rules = policy.homomorphic
    text = (
        f"CKKS, profile {rules.profile}: {PROFILE_TEXTS[rules.profile]}. Numbers are approximate, so that the answer "
        "can be another than in mode local, and is never called exact."
    )
    measured = measurements()
    if rules.linear == "device":
        found = measured["public prefix" if rules.public == "plaintext" else "encrypted prefix"]
        return f"{text} {_seconds(found, rules)}"
    found = measured["linear layers too"]
    return (
        f"{text} The large matrices are applied by the recipient, to the prompt too, one token at a time. "
        f"{_seconds(found, rules)} At that, up to {found.seconds_a_token * rules.max_prompt_tokens:.0f} s pass before "
        f"the answer begins (prompts above {rules.max_prompt_tokens} tokens are refused). A larger model takes longer "
        "in proportion to its weights."
    )


def _seconds(found: Measurement, rules: Homomorphic) -> str:
    """Say what a token took, and on what that was measured."""
    text = (
        f"Measured: {found.seconds_a_token:g} s a token, with the {found.model} model, profile {found.profile} and a "
        f"prefix of {found.prefix_tokens} tokens, on {found.conditions}."
    )
    return text if rules.profile == found.profile else f"{text} Profile {rules.profile} was not measured."


def rounds_fallback(policy: Policy) -> str:
    """Return what happens when the connection is lost."""
    lost = (
        "A lost connection ends the run; nothing is resumed. Every end, a failed check too, looks alike to the "
        "recipient."
    )
    if policy.fallback.on_remote_failure == "refuse":
        return f"{lost} Then the run stops with an error. Nothing is tried another way."
    return (
        f"{lost} If the connection is lost before the first token of the answer, the device runs everything itself. "
        "What was sent by then has left. It never falls back after received bytes failed a check, nor to a weaker "
        "protection."
    )
