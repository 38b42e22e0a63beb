"""Plain language about a policy: Policy -> text that a lawyer can read; device side, no IO.

It says "sealed" and "clear" in their exact senses and calls nothing stronger than the mode's row in `modes` does.
"""

from __future__ import annotations

from textwrap import fill

from trust_models.codecs import AUTO, CODEC_TEXTS, LOSSY, Loss
from trust_models.explain_rounds import (
    ROUNDS_LEAVES,
    ROUNDS_READERS,
    ROUNDS_TURNS,
    rounds_encoding,
    rounds_fallback,
    rounds_learns,
)
from trust_models.modes import MODES, ModeRow, TrustMode
from trust_models.noise_text import ASSUMED, EMPIRICAL, LEAVES, READERS, REPLACED, budget, promise
from trust_models.schema import Policy

__all__ = ["explain"]

_WIDTH = 100
_LEAVES = {
    TrustMode.LOCAL: "Nothing. Prompt, cache and answer stay on the device.",
    TrustMode.PUBLIC_PREFIX: (
        "The public texts that stand before the first private one, as tokens, sealed. Their cache comes back, sealed. "
        "A public text after a private one is treated as private and stays. Private text, anything computed from it, "
        "and the answer stay on the device."
    ),
    TrustMode.SEALED_PREFILL: (
        "The whole prompt, private texts included, sealed. Its cache comes back, sealed. "
        "The answer is made on the device and is not sent."
    ),
    TrustMode.SEALED_DECODE: (
        "The cache of the whole prompt, private texts included, and its last token, sealed. "
        "A cache gives back the text that it was made from. The answer comes back, sealed."
    ),
    TrustMode.NOISED_DECODE: (
        "The cache that the prompt gives after noise was added to its private tokens, sealed, and a last token that is "
        "public. The cache gives back the public texts, and the private ones as the noise left them. How many private "
        "tokens there are and where goes with it. The answer comes back, sealed."
    ),
}
_LEAVES[TrustMode.NOISED_PREFILL] = (
    "The embeddings of the prompt after noise was added to those of its private tokens, sealed; not its last token. "
    "They give back the public texts, and the private ones as the noise left them. How many private tokens there are "
    "and where goes with it. Their cache comes back, sealed. The answer is made on the device and is not sent."
)
_READERS = {
    TrustMode.LOCAL: "Only this device.",
    TrustMode.PUBLIC_PREFIX: (
        "Private texts: only this device. The public texts that are sent: this device and the recipient, "
        "which has them in clear."
    ),
    TrustMode.SEALED_PREFILL: (
        "This device and the recipient. The recipient has the whole prompt in clear, and with it could compute "
        "an answer of its own."
    ),
    TrustMode.SEALED_DECODE: (
        "This device and the recipient. The recipient has the whole prompt (in its cache) and the answer in clear."
    ),
    TrustMode.NOISED_DECODE: (
        "Private texts as they are: only this device. The recipient has the public texts in clear, the private ones "
        "through noise, and the answer in clear, which can repeat private text."
    ),
}
_READERS[TrustMode.NOISED_PREFILL] = (
    "Private texts as they are, and the answer: only this device. The recipient has the public texts in clear and the "
    "private ones through noise."
)
_SEALED = (
    "Sealed means encrypted and authenticated, so that only the recipient with the pinned identity can open it. "
    "Clear means readable as it is. Until the recipient destroys its short-lived keys, whoever takes those keys can "
    "open what was recorded. The encryption is meant to hold against a quantum computer too; the signatures that show "
    "who is who are not."
)
_OBSERVERS = (
    "Whoever watches the network sees that this device and that address talk, when, for how long, and sizes rounded "
    "up to a bucket (64 tokens at the least); no text. In clear inside the connection stand a format "
    "version and suite, the key set in use, a transfer number, a pseudonym of this device for that key set, a chunk "
    "size, an expiry time, and random or cryptographic values (wrapped key, nonces, commitment, signature)."
)
_RECORDS = "Each round shows its number, step, layer and operation in clear inside the connection, and its length."
_CHOICE = (
    "If public texts are chosen with the help of private text, as a search for fitting documents does, the choice "
    "itself tells the recipient something about the private text. Nothing here hides that."
)

_AUTO_TEXT = (
    "Codec auto: raw, q8 or a level of ftc1, or nothing at all where this device would be as fast. Chosen from the "
    "size class of the tokens, the speeds that were measured, and this policy, never from the text. Only codecs that "
    "this policy permits are chosen; with one that rounds the answer can be another than in mode local, and is never "
    "called exact."
)


def explain(policy: Policy, *, loss: Loss | None = None, price: str | None = None) -> str:
    """Return what will leave, who can read it, what is learnt, what is formal and what happens on failure.

    `loss` is what the policy's codec was measured to cost the policy's model, None where nothing was. `price` is the
    sentence of a noised release's certificate, None where it is not known before the first run.
    """
    row, is_rounds = MODES[policy.mode], policy.mode in ROUNDS_TURNS
    parts = [
        ("Mode", f"{policy.mode}: prefill on the {_place(row)}, decode on the {row.decode}."),
        ("What leaves this device", LEAVES if _noises_cache(policy) else (_LEAVES | ROUNDS_LEAVES)[policy.mode]),
        ("Who can read it", READERS if _noises_cache(policy) else (_READERS | ROUNDS_READERS)[policy.mode]),
    ]
    if policy.mode is not TrustMode.LOCAL:
        parts += [
            ("What sealed means", _SEALED),
            ("Who the recipient is", _recipient(policy)),
            ("What the recipient learns besides", rounds_learns(policy) if is_rounds else _learns(policy.mode)),
            ("What others learn", f"{_OBSERVERS} {_RECORDS}" if is_rounds else _OBSERVERS),
            ("How numbers are encoded", rounds_encoding(policy))
            if is_rounds
            else ("How the cache is packed", _packing(policy, loss)),
        ]
    if policy.noise is not None:
        parts += [("What the noise promises", promise(policy.noise, price))]
        parts += [("Which number of tokens", REPLACED[policy.noise.mechanism])]
        parts += [("What may be spent", budget(policy.noise))]
    assumption = ASSUMED if _promises_nothing(policy) else row.assumption
    parts += [("What is assumed", _sentence(assumption)), ("What is formal", _formal(policy))]
    parts.append(("What is only empirical", _empirical(policy)))
    if policy.mode is TrustMode.PUBLIC_PREFIX:
        parts += [("Labels", _labels(policy)), ("Choosing public texts", _CHOICE), ("A dishonest cloud", _rows(policy))]
        parts.append(("What stays on this device", _store(policy)))
    parts.append(("Between the turns of a session", _turns(policy)))
    if policy.mode is not TrustMode.LOCAL:
        parts.append(("If the cloud fails", rounds_fallback(policy) if is_rounds else _fallback(policy)))
    parts += [("Model", _model(policy)), ("Log", _log(policy)), ("Policy digest", policy.digest)]
    return "\n\n".join(
        f"{title}\n{fill(text, _WIDTH, initial_indent='  ', subsequent_indent='  ')}" for title, text in parts
    )


def _noises_cache(policy: Policy) -> bool:
    return policy.noise is not None and policy.noise.mechanism != "embedding"


def _promises_nothing(policy: Policy) -> bool:
    return policy.noise is not None and policy.noise.mechanism == "relative"


def _place(row: ModeRow) -> str:
    return "cloud (public texts) and the device (the rest)" if row.prefill == "cloud:public" else row.prefill


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _recipient(policy: Policy) -> str:
    remote = policy.remote
    if remote is None:
        return "Nobody."
    if remote.name is not None:
        who = f'The identity that this device keeps under the name "{remote.name}" in its state folder'
    else:
        who = f"The identity with the SHA-256 {remote.identity_sha256}, expected at {remote.url}"
    return (
        f"{who}. It is pinned: another identity is refused. Pinning proves who the recipient is; "
        "it proves nothing about its software or about what it does with what it can read."
    )


def _learns(mode: TrustMode) -> str:
    counts = "the public texts that are sent" if mode is TrustMode.PUBLIC_PREFIX else "the prompt"
    return (
        f"Which device asks, when and how often; which model and which policy (by digest); the "
        f"request's settings that travel with it; "
        f"the exact token count of {counts}. It also sees timing, such as the pauses between requests."
    )


def _formal(policy: Policy) -> str:
    if _promises_nothing(policy):
        return f"Nothing about private texts towards the recipient: {EMPIRICAL}. Towards others: what sealed means."
    reach = "This holds for what this program sends; other software on the device is outside it."
    return f"{_sentence(MODES[policy.mode].guarantee)} {reach}"


def _empirical(policy: Policy) -> str:
    if policy.mode is TrustMode.LOCAL:
        return "Nothing: there is no transfer whose timing or size could be measured."
    hidden = "What the noise hides, and what" if _promises_nothing(policy) else "What"
    return (
        f"{hidden} timing and rounded sizes still give away. It can be measured, not proven, and no bound is claimed."
    )


def _labels(policy: Policy) -> str:
    public = sum(rule.label == "public" for rule in policy.segments.rule)
    private = len(policy.segments.rule) - public
    return (
        f"Text that nobody labels is private. This policy has {public} rule(s) that name a text as public "
        f"and {private} that make texts private. A rule for private wins over the caller's --public; "
        "a caller's private is never overruled."
    )


def _rows(policy: Policy) -> str:
    rows = policy.transfer.verify_rows
    steer = "A dishonest cloud can return a wrong cache and so steer the answer; it cannot read private text by it."
    if not rows:
        return f"{steer} This policy does not check for that (verify_rows = 0)."
    return (
        f"{steer} This policy recomputes {rows} random row(s) of the received cache. If one row among T is wrong, "
        f"it goes unnoticed with probability 1 - {rows}/T (0 if T is {rows} or less): long texts are checked thinly."
    )


def _store(policy: Policy) -> str:
    if not policy.store.enabled:
        return "Nothing of a transfer but the log: outside of an open session every run asks the cloud again."
    return (
        "The cache of the public texts, encrypted under a key of the state folder, in files of "
        f"{policy.store.max_bytes:,} bytes together at most. A later run on the same public texts uses it: then "
        "nothing leaves, and the recipient does not learn of that run. Private texts and their cache are never stored. "
        "Number, sizes and times of the files show on the disk that public texts were used, not which."
    )


def _turns(policy: Policy) -> str:
    if policy.mode in ROUNDS_TURNS:
        return ROUNDS_TURNS[policy.mode]
    here = (
        "While a session is open, this device keeps the cache of its last prompt in memory, and wipes it when the "
        "session is closed."
    )
    if MODES[policy.mode].is_noised:
        return (
            "This device keeps nothing of a turn, and asks the recipient to keep nothing. Every turn is a release of "
            "its own: its whole prompt is noised anew, and what that costs is added to what was spent."
        )
    if policy.mode is TrustMode.LOCAL:
        return f"{here} A later turn computes only what is new."
    if policy.mode is TrustMode.PUBLIC_PREFIX:
        return (
            f"{here} A later turn asks the recipient only where a new public text stands among the leading ones: all "
            "of those are sent then, and the cache of the new ones comes back. The recipient may keep the cache of "
            "public texts in its memory, for requests of this device alone; its receipt then says kept."
        )
    if policy.session.keep:
        return (
            f"{here} The recipient keeps the cache of the whole prompt in its memory too, until the session is closed, "
            "is idle for as long as its operator set, or is pushed out by others; its receipt says kept. It can read "
            "the prompt from that cache for as long. A later turn sends only what is new, or all where that is lost."
        )
    kept_here = here if policy.mode is TrustMode.SEALED_DECODE else "This device keeps nothing of a turn."
    return f"{kept_here} The recipient keeps nothing (session.keep = false): every turn sends everything again."


def _packing(policy: Policy, loss: Loss | None) -> str:
    name = policy.transfer.codec
    if name == AUTO:
        return _AUTO_TEXT
    text = f"Codec {name}: {CODEC_TEXTS[name]}."
    if name not in LOSSY:
        return text
    known = f"For this model {loss.sentence()}." if loss else "What that costs this model was not measured here."
    bound = f" It is refused above {policy.transfer.max_kl:g} nats." if policy.transfer.max_kl is not None else ""
    return f"{text} The answer can be another than in mode local, and is never called exact. {known}{bound}"


def _fallback(policy: Policy) -> str:
    if policy.fallback.on_remote_failure == "refuse":
        return f"{_resumes(policy)} Then the run stops with an error. Nothing is tried another way."
    partly = (
        ""
        if MODES[policy.mode].decode == "cloud"
        else "Of a cache that came in part it uses the steps that it verified, where the model's layers allow that, "
        "and says so. "
    )
    return (
        f"{_resumes(policy)} If the connection is lost for good before the first token of the answer, the device runs "
        f"everything itself. {partly}What was sent by then has left. It never falls back after received bytes failed a "
        "check, nor to a weaker protection."
    )


def _resumes(policy: Policy) -> str:
    attempts = policy.transfer.resume_attempts
    if not attempts:
        return "A lost connection ends the transfer (resume_attempts = 0)."
    return (
        f"After a lost connection the same encrypted bytes are sent on, up to {attempts} time(s) in one transfer, "
        "until it expires; the recipient keeps what it has of them for that long."
    )


def _model(policy: Policy) -> str:
    pinned = policy.model.weights_sha256
    pin = f"Its weights must have the SHA-256 {pinned}." if pinned else "Its weights are not pinned by this policy."
    return f'Model "{policy.model.source}". {pin}'


def _log(policy: Policy) -> str:
    place = "this device's state folder" if policy.audit.path is None else policy.audit.path
    before = "" if policy.mode is TrustMode.LOCAL else ", before the first byte leaves"
    return (
        f"Every run, also a denied one, is recorded in {place}{before}: digests and sizes, "
        "never text. The record shows what this program released, once a signed checkpoint is kept elsewhere."
    )
