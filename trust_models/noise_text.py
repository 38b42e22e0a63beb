"""Plain language about `[noise]`: what a policy's mechanism lets leave, promises and costs; device side, no IO."""

from __future__ import annotations

from trust_models.noise import MEANINGLESS_ABOVE_EPSILON, Noise, adjacency_words

__all__ = ["ASSUMED", "EMPIRICAL", "LEAVES", "READERS", "REPLACED", "budget", "promise"]

LEAVES = (
    "The cache of the prompt, with noise added to its rows from the first private token on, sealed, and a last token "
    "that is public. It gives back the public texts before that, and the others as the noise left them. How many "
    "tokens there are and where the first private one stands goes with it. It leaves once it is whole, since noise is "
    "added to the finished cache; nothing leaves while it grows. The answer comes back, sealed."
)
READERS = (
    "Private texts as they are: only this device. The recipient has the cache of the whole prompt through noise, and "
    "the answer in clear, which can repeat private text."
)
EMPIRICAL = "empirical only: nothing is proven about what the recipient can learn of the private texts"
ASSUMED = "that the recipient cannot see through the noise, of which nothing is proven; honest for an honest answer"
_OF_TOKENS = (
    "The promise is about texts of the same length that differ in so many tokens. A name of m tokens that occurs j "
    "times needs m x j of them, and whatever else gives it away counts too. Replacing a name by one of another length "
    "is not covered. A promise about fewer tokens than the secret has is a weaker one than its epsilon says."
)
REPLACED = {
    "embedding": _OF_TOKENS,
    "clipped": (
        "The promise is about texts of the same length that differ in all their private tokens. There is none about "
        "fewer: one token changes every later row of every later layer."
    ),
    "relative": "There is none: nothing is promised between any two texts.",
}


def promise(noise: Noise, price: str | None) -> str:
    """Say what the noise promises; `price` is the sentence of a certificate, where it is known before a run."""
    if price is not None:
        return price
    if noise.mechanism == "relative":
        return f"Noise of {noise.relative_noise:g} times the size of what it hides. This is {EMPIRICAL}."
    between = f"between private texts of the same length ({adjacency_words(noise.adjacency_tokens)})"
    if noise.epsilon is None:
        return (
            f"Noise of standard deviation {noise.sigma:g} {between}. What that promises depends on the model; every "
            f"run states it at delta {noise.stated_delta:g}. Above an epsilon of {MEANINGLESS_ABOVE_EPSILON:g} it is "
            "formally meaningless, empirical only."
        )
    verdict = (
        " At that size the promise is formally meaningless, empirical only."
        if noise.epsilon > MEANINGLESS_ABOVE_EPSILON
        else ""
    )
    return f"Epsilon {noise.epsilon:g} at delta {noise.stated_delta:g} {between}.{verdict}"


def budget(noise: Noise) -> str:
    """Say what all runs on the subject together may spend."""
    if noise.mechanism == "relative":
        return (
            f'No budget applies, as this policy says in a word. Each run on the subject "{noise.subject}" stands in '
            "the log as one without a finite price; every later run on it under a policy with a budget is refused."
        )
    return (
        f'All runs on the subject "{noise.subject}" together may spend an epsilon of {noise.budget:g} at delta '
        f"{noise.stated_delta:g}. What was spent stands in the log before anything leaves, whether or not the run "
        "succeeds; a run that would spend more is refused. Another state folder or log counts anew."
    )
