"""The policy's sections and the contradictions that are refused: tables of a TOML file -> Policy; device side, no IO.

Every sentence raised here says what to write instead; `translation` turns what pydantic itself finds into such
sentences. Nothing repeats a value that could be secret.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

import rfc8785
from pydantic import Field, model_validator

from trust_models.codecs import AUTO, CALIBRATED, LOSSY, CodecName
from trust_models.labels import LabelName, LabelRule, decide_label, normal_name
from trust_models.modes import MODES, TrustMode
from trust_models.noise import Noise, Sampling
from trust_models.rounds import Homomorphic, Masked
from trust_models.section import Section as _Section
from trust_models.section import refuse as _refuse
from trust_models.values import (
    ChunkTokens,
    DefaultLabel,
    Megabits,
    ModeWord,
    Nats,
    RemoteName,
    ResumeAttempts,
    Sha256,
    StoreBytes,
    Text,
    Url,
    VerifyRows,
)

__all__ = [
    "Audit",
    "Fallback",
    "Model",
    "Policy",
    "Remote",
    "SegmentRule",
    "Segments",
    "Session",
    "Store",
    "Transfer",
]

_KEEPING_MODES = (TrustMode.SEALED_PREFILL, TrustMode.SEALED_DECODE)
_ROUNDS_MODES = (TrustMode.HOMOMORPHIC, TrustMode.MASKED)


class Model(_Section):
    """Which model runs: "embedded", a local path or a hub id; `weights_sha256` pins its weights."""

    source: Text = "embedded"
    weights_sha256: Sha256 | None = None


class SegmentRule(_Section):
    """One label rule: `source` names a text exactly, `pattern` (fnmatch) names many and may only make them private."""

    source: Text | None = None
    pattern: Text | None = None
    label: LabelName

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.source is None) == (self.pattern is None):
            _refuse("a [[segments.rule]] has both or neither of source and pattern; write exactly one of them")
        if self.pattern is not None and self.label == "public":
            _refuse(
                "a pattern rule would make public whatever happens to match; "
                'write source = "NAME" for each public text, and patterns with label = "private" only'
            )
        if self.source is not None and any(letter in self.source for letter in "*?"):
            _refuse('source is an exact name, without * or ?; write pattern = "..." with label = "private" instead')
        if (self.pattern or "").startswith("~"):
            _refuse('a pattern is not expanded, so "~" matches no path; write pattern = "*/FOLDER/*" instead')
        if (self.source or self.pattern or "").endswith(("/", "\\")):
            _refuse('a rule names texts, not folders; write pattern = "FOLDER/*" with label = "private"')
        return self


class Segments(_Section):
    """How texts are labelled; what no rule and no caller labels is private."""

    default: DefaultLabel = "private"
    # TOML gives lists; a tuple keeps the frozen policy hashable.
    rule: Annotated[tuple[SegmentRule, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels: dict[str, LabelName] = {}
        for rule in self.rule:
            if rule.source is not None and labels.setdefault(normal_name(rule.source), rule.label) != rule.label:
                _refuse("two [[segments.rule]] entries give one source both labels; write one of them only")
        return self


class Remote(_Section):
    """The other side: `name` of an entry of the state folder, or `url` and `identity_sha256` inline."""

    name: RemoteName | None = None
    url: Url | None = None
    identity_sha256: Sha256 | None = None
    tls_ca: Text | None = None
    recipient: Literal["pinned"] = "pinned"

    @model_validator(mode="after")
    def _check(self) -> Self:
        inline = any(value is not None for value in (self.url, self.identity_sha256, self.tls_ca))
        if self.name is not None and inline:
            _refuse("[remote] has both a name and inline keys; write either name, or url and identity_sha256")
        if self.name is None and not inline:
            _refuse('[remote] names nobody; write name = "default", or url and identity_sha256')
        if inline and self.url is None:
            _refuse('[remote] has no url; write url = "https://HOST" beside identity_sha256, or name = "default" alone')
        if inline and self.identity_sha256 is None:
            _refuse(
                "[remote] does not say who the recipient is; write identity_sha256 with the 64 hex digits that its "
                "operator gave you"
            )
        if self.tls_ca is not None and (self.url or "").startswith("http:"):
            _refuse("remote.tls_ca has no use with an http url; leave it out or write an https url")
        return self


class Transfer(_Section):
    """How bytes travel. `chunk_tokens` is the longest prefill step; `verify_rows` counts recomputed cache rows.

    `resume_attempts` is how often a transfer goes on after its connection was lost; 0 ends it at once.
    `max_kl` is the most that a lossy codec may cost this model, in nats of divergence a token as measured; `codecs`
    says what each codec is. `allow_uncertified` permits levels of `ftc1` whose loss was not measured for this model and
    artefact. `link_mbit_per_second` stands in for the measured link where `codec` is "auto".
    """

    codec: CodecName = "raw"
    max_kl: Nats | None = None
    allow_q4_small_models: bool = False
    allow_uncertified: bool = False
    link_mbit_per_second: Megabits | None = None
    pad: Literal["padme"] = "padme"
    chunk_tokens: ChunkTokens = 512
    verify_rows: VerifyRows = 0
    resume_attempts: ResumeAttempts = 2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_kl is not None and self.codec not in (*LOSSY, AUTO):
            _refuse(f'codec "{self.codec}" loses nothing that transfer.max_kl could bound; leave max_kl out')
        if self.allow_q4_small_models and self.codec != "q4":
            _refuse(f'codec "{self.codec}" needs no allow_q4_small_models; leave it out')
        if self.allow_uncertified and self.codec not in (*CALIBRATED, AUTO):
            _refuse(f'codec "{self.codec}" needs no certificate; leave allow_uncertified out')
        if self.link_mbit_per_second is not None and self.codec != AUTO:
            _refuse('transfer.link_mbit_per_second is for codec = "auto" only; leave it out')
        if self.verify_rows and self.codec in (*LOSSY, AUTO):
            _refuse(
                f'transfer.verify_rows compares rows that codec "{self.codec}" has rounded, so that honest rows '
                'differ too; write codec = "lossless", or verify_rows = 0'
            )
        return self


class Store(_Section):
    """Whether the device keeps caches of public texts, encrypted, and how many bytes they may take on its disk."""

    enabled: bool = True
    max_bytes: StoreBytes = 4 * 1024**3


class Session(_Section):
    """Whether the cloud may keep a session's cache in its memory between the turns; else every turn sends all again."""

    keep: bool = False


class Fallback(_Section):
    """What happens when the transport fails before the first token: refuse, or run on the device."""

    on_remote_failure: Literal["refuse", "local"] = "refuse"


class Audit(_Section):
    """Where the audit log is; None is the state folder's own."""

    path: Text | None = None


class Policy(_Section):
    """A whole policy file, checked. Construct it with `load_policy`, which raises PolicyError instead of pydantic's."""

    mode: ModeWord
    model: Model = Model()
    segments: Segments = Segments()
    remote: Remote | None = None
    transfer: Transfer = Transfer()
    store: Store = Store()
    session: Session = Session()
    fallback: Fallback = Fallback()
    audit: Audit = Audit()
    noise: Noise | None = None
    sampling: Sampling | None = None
    homomorphic: Homomorphic = Homomorphic()
    masked: Masked = Masked()

    @model_validator(mode="after")
    def _check(self) -> Self:
        local = self.mode is TrustMode.LOCAL
        if local and self.remote is not None:
            _refuse('mode "local" never calls anybody; remove [remote], or write another mode')
        if local and self.fallback.on_remote_failure == "local":
            _refuse('mode "local" has no remote that could fail; remove [fallback]')
        if not local and self.remote is None:
            _refuse(f'mode "{self.mode}" needs a recipient; write [remote] with name = "default"')
        if self.transfer.verify_rows and self.mode is not TrustMode.PUBLIC_PREFIX:
            _refuse(
                f'transfer.verify_rows works in mode "public-prefix" only; '
                f'write 0 or leave it out in mode "{self.mode}"'
            )
        if self.store != Store() and self.mode is not TrustMode.PUBLIC_PREFIX:
            _refuse(
                f'the store keeps caches of public texts in mode "public-prefix" only; '
                f'leave [store] out in mode "{self.mode}"'
            )
        self._check_noise()
        self._check_rounds()
        if self.session.keep and self.mode not in _KEEPING_MODES:
            _refuse(
                f'mode "{self.mode}" lets the cloud keep no session; leave session.keep out, or write mode '
                '"sealed-prefill" or "sealed-decode"'
            )
        return self

    def _check_noise(self) -> None:
        row = MODES[self.mode]
        if row.is_noised and self.noise is None:
            _refuse(
                f'mode "{self.mode}" promises nothing without [noise]; write it with adjacency, epsilon and delta, '
                "subject and budget_epsilon"
            )
        if not row.is_noised and self.noise is not None:
            _refuse(f'mode "{self.mode}" adds no noise, so [noise] would promise what is not done; leave it out')
        if self.noise is not None and self.noise.first_token_text is not None and row.decode == "device":
            _refuse(f'mode "{self.mode}" feeds the first token on the device; leave noise.first_token_text out')
        if self.noise is not None and self.noise.mechanism != "embedding" and row.prefill == "cloud":
            _refuse(
                f'mode "{self.mode}" sends embeddings, so there is no cache on this device to noise; write mechanism = '
                '"embedding", or mode = "noised-decode"'
            )
        if self.sampling is not None and not (row.is_noised and row.decode == "cloud"):
            _refuse(f'mode "{self.mode}" takes sampling from the caller; leave [sampling] out and give it with the run')

    def _check_rounds(self) -> None:
        if self.homomorphic != Homomorphic() and self.mode is not TrustMode.HOMOMORPHIC:
            _refuse(f'mode "{self.mode}" encrypts nothing homomorphically; leave [homomorphic] out')
        if self.masked != Masked() and self.mode is not TrustMode.MASKED:
            _refuse(f'mode "{self.mode}" uses no masks; leave [masked] out')
        if self.mode in _ROUNDS_MODES and self.transfer.codec != "raw":
            _refuse(f'mode "{self.mode}" sends no packed cache; leave transfer.codec out')
        if self.homomorphic.linear == "cloud" and self.fallback.on_remote_failure == "local":
            _refuse(
                'homomorphic.linear = "cloud" is for a device without the large matrices, which cannot take over; '
                'write on_remote_failure = "refuse"'
            )

    @property
    def digest(self) -> str:
        """Return the lower-case hex SHA-256 over the RFC 8785 JSON of the policy's rules.

        Defaults are written out and absent options left out. Places are not rules and stay outside: `audit.path`,
        `store.max_bytes`, `remote.url` and `remote.tls_ca`, and the link's rate; the recipient is who its identity
        says, wherever it is. So do `store` and `session` in the modes that keep nothing there, `homomorphic` in other
        modes and `masked`. Label rules act together, so that their order and repetition do not matter: they are sorted
        and counted once.
        """
        fields = self.model_dump(
            mode="json",
            exclude_none=True,
            exclude={
                "audit": {"path"},
                "remote": {"url", "tls_ca"},
                "store": {"max_bytes"},
                "transfer": {"link_mbit_per_second"},
                "masked": True,
            },
        )
        if self.mode is not TrustMode.PUBLIC_PREFIX:
            del fields["store"]
        if self.mode not in _KEEPING_MODES:
            del fields["session"]
        if self.mode is not TrustMode.HOMOMORPHIC:
            del fields["homomorphic"]
        if "sampling" in fields:
            # As in a manifest: JSON numbers are exact up to 2^53 only.
            fields["sampling"]["seed"] = str(fields["sampling"]["seed"])
        unique = {rfc8785.dumps(rule): rule for rule in fields["segments"]["rule"]}
        fields["segments"]["rule"] = [unique[key] for key in sorted(unique)]
        return hashlib.sha256(rfc8785.dumps(fields)).hexdigest()

    def label_of(self, source: str, caller_label: str | None) -> LabelName:
        """Return the label of the text called `source`, given the caller's own label or None for unlabelled text.

        | caller | a private rule matches | a public rule names it exactly | label |
        |---|---|---|---|
        | any | yes | any | private |
        | public | no | any | public |
        | private | no | any | private |
        | none | no | yes | public |
        | none | no | no | private |

        So a rule demotes whatever the caller asked for, and promotes only a text that the caller left unlabelled;
        any other label than these is taken as private. A public rule matches the very same string. A private one
        matches any spelling of the path and any of its endings (`nda.md` covers `./NDA.md` and `/home/me/nda.md`).
        Links are not followed.
        """
        rules = (LabelRule(rule.source, rule.pattern, rule.label) for rule in self.segments.rule)
        return decide_label(rules, source, caller_label)
