"""The whole error tree, drawn here; every stage raises one of these and nothing else.

SplitInferError
├── UsageError                     exit 2   the command line or call itself is wrong
├── PolicyError                    exit 3   the policy file cannot be used
│   ├── BudgetExceededError
│   └── UnsupportedEventError
├── EgressDeniedError              exit 3   the policy does not permit what was asked
├── PromptError                    exit 7
│   ├── EmptyPromptError
│   ├── PromptTooLongError
│   └── TemplateError
├── ModelError                     exit 7
│   ├── ModelNotFoundError
│   ├── UnsupportedModelError
│   └── ModelMismatchError         exit 4
├── AttestationError               exit 4   who the recipient is could not be established
│   ├── RecipientMismatchError
│   └── StaleKeysetError
├── VerificationError              exit 4   received bytes were refused
│   ├── LimitExceededError
│   ├── ManifestError
│   ├── AuthenticationError
│   ├── TruncatedError
│   ├── ReplayError
│   ├── SessionLostError
│   ├── ArtefactMismatchError
│   └── LayoutMismatchError
├── CodecError                     exit 7
│   ├── UnknownCodecError
│   ├── ArtefactError
│   └── UnsupportedCacheError
├── AuditLogError                  exit 6
│   └── BrokenLogError
├── CryptoParameterError           exit 7   ciphertexts or noise cannot be made: parameters, keys or values
├── MasksExhaustedError            exit 2   no one-time masks are left, or their pool must not be used
├── StateError                     exit 2   the state folder (keys, remotes) cannot be used
│   └── StoreError
└── TransportError                 exit 5
    ├── TransportTimeoutError
    ├── RemoteBusyError
    └── RemoteRefusedError

No message carries prompt text, token ids, tensor bytes or key bytes. `AuthenticationError` has one
message for every cause, so that decapsulation and tag failures cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

__all__ = [
    "ArtefactError",
    "ArtefactMismatchError",
    "AttestationError",
    "AuditLogError",
    "AuthenticationError",
    "BrokenLogError",
    "BudgetExceededError",
    "CodecError",
    "CryptoParameterError",
    "EgressDeniedError",
    "EmptyPromptError",
    "LayoutMismatchError",
    "LimitExceededError",
    "ManifestError",
    "MasksExhaustedError",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "PolicyError",
    "PromptError",
    "PromptTooLongError",
    "RecipientMismatchError",
    "RemoteBusyError",
    "RemoteRefusedError",
    "ReplayError",
    "SessionLostError",
    "SplitInferError",
    "StaleKeysetError",
    "StateError",
    "StoreError",
    "TemplateError",
    "TransportError",
    "TransportTimeoutError",
    "TruncatedError",
    "UnknownCodecError",
    "UnsupportedCacheError",
    "UnsupportedEventError",
    "UnsupportedModelError",
    "UsageError",
    "VerificationError",
    "error_for_code",
]


class SplitInferError(Exception):
    """Root of everything that splitinfer raises; `code` is stable and `exit_code` is the CLI's.

    `fields` are the digests or counts that differ; a sealed refusal carries them to the other side.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", *, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields: Mapping[str, str] = dict(fields or {})


class UsageError(SplitInferError):
    """The call or command line is wrong; the message says what to write instead."""

    code = "usage"
    exit_code = 2


class StateError(SplitInferError):
    """Something in the state folder is missing, malformed, expired, or readable by others."""

    code = "state"
    exit_code = 2


class StoreError(StateError):
    """The store of public caches cannot be used, or cannot take one more: its folder, its limit, the disk."""

    code = "store"


class PolicyError(SplitInferError):
    """The policy file is missing, unreadable, unknown in a key, contradictory or weak."""

    code = "policy"
    exit_code = 3


class BudgetExceededError(PolicyError):
    """A noised release would spend more than the policy's privacy budget."""

    code = "budget_exceeded"


class UnsupportedEventError(PolicyError):
    """A privacy event that this version cannot price; nothing is released beside it."""

    code = "privacy_event"


class EgressDeniedError(SplitInferError):
    """The policy does not permit these bytes to leave the device."""

    code = "egress_denied"
    exit_code = 3


class PromptError(SplitInferError):
    """The prompt cannot be used."""

    code = "prompt"
    exit_code = 7


class EmptyPromptError(PromptError):
    """The prompt has no text."""

    code = "prompt_empty"


class PromptTooLongError(PromptError):
    """The prompt and the tokens to generate exceed the model's positions."""

    code = "prompt_too_long"


class TemplateError(PromptError):
    """The chat template drops, repeats, reorders or rewrites a segment."""

    code = "template"


class ModelError(SplitInferError):
    """The model cannot be used."""

    code = "model"
    exit_code = 7


class ModelNotFoundError(ModelError):
    """There is no model at this source."""

    code = "model_not_found"


class UnsupportedModelError(ModelError):
    """The model is of a form that is refused by name (pickled weights, an unknown architecture)."""

    code = "model_unsupported"


class ModelMismatchError(ModelError):
    """The weights, config or tokenizer differ from those that were expected; names both digests."""

    code = "model_mismatch"
    exit_code = 4


class AttestationError(SplitInferError):
    """The recipient's keyset could not be appraised."""

    code = "attestation"
    exit_code = 4


class RecipientMismatchError(AttestationError):
    """The keyset is certified by another identity than the pinned one, or by nobody."""

    code = "recipient_mismatch"


class StaleKeysetError(AttestationError):
    """The keyset or certificate is expired, not yet valid, or older than one seen before."""

    code = "keyset_stale"


class VerificationError(SplitInferError):
    """Received bytes were refused; whatever had been received of them is wiped."""

    code = "verification"
    exit_code = 4


class LimitExceededError(VerificationError):
    """A declared or received size is above its limit."""

    code = "limit_exceeded"


class ManifestError(VerificationError):
    """A manifest is malformed, of another version or suite, expired, or asks for what is not accepted."""

    code = "manifest"


class AuthenticationError(VerificationError):
    """A key, signature, commitment or tag did not verify; one message for every cause."""

    code = "authentication"

    def __init__(
        self, message: str = "the bytes are not authentic", *, fields: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, fields=fields)


class TruncatedError(VerificationError):
    """The stream ended before its final chunk, or goes on after it."""

    code = "truncated"


class ReplayError(VerificationError):
    """The transfer, nonce or session step was seen before or belongs to another session."""

    code = "replay"


class SessionLostError(VerificationError):
    """The cloud holds no cache of this session any more; everything has to be sent again."""

    code = "session_lost"


class ArtefactMismatchError(VerificationError):
    """Both sides do not hold the same calibrated artefact of a codec."""

    code = "artefact_mismatch"


class LayoutMismatchError(VerificationError):
    """The cache layout or token counts in the manifest do not match the model."""

    code = "layout_mismatch"


class CodecError(SplitInferError):
    """The cache cannot be packed or unpacked."""

    code = "codec"
    exit_code = 7


class UnknownCodecError(CodecError):
    """The codec id is not in the closed table."""

    code = "codec_unknown"


class ArtefactError(CodecError):
    """A codec's calibrated artefact is missing, malformed, or made for another model."""

    code = "artefact"


class UnsupportedCacheError(CodecError):
    """The model keeps its state in a cache kind that cannot travel; named before anything is computed."""

    code = "cache_unsupported"


class AuditLogError(SplitInferError):
    """The audit log cannot be written; nothing is sent."""

    code = "audit_log"
    exit_code = 6


class BrokenLogError(AuditLogError):
    """The log is corrupted, shorter than or inconsistent with its last signed checkpoint."""

    code = "audit_log_broken"


class CryptoParameterError(SplitInferError):
    """Parameters are too weak, keys are missing, gone or used before, or values cannot be encoded."""

    code = "crypto_parameters"
    exit_code = 7


class MasksExhaustedError(SplitInferError):
    """The pool holds too few unused one-time masks, or is a copy that must not be used; says what to do next."""

    code = "masks_exhausted"
    exit_code = 2


class TransportError(SplitInferError):
    """The cloud could not be reached, closed early, or answered with something else."""

    code = "transport"
    exit_code = 5


class TransportTimeoutError(TransportError):
    """The cloud did not answer in time."""

    code = "transport_timeout"


class RemoteBusyError(TransportError):
    """The cloud is at its limit of concurrent transfers (HTTP 429)."""

    code = "remote_busy"


class RemoteRefusedError(TransportError):
    """The cloud refused the request; `remote_code` is its word for why, an unauthenticated hint."""

    code = "remote_refused"

    def __init__(self, message: str, *, remote_code: str = "unknown") -> None:
        super().__init__(message)
        self.remote_code = remote_code


def _tree(root: type[SplitInferError]) -> list[type[SplitInferError]]:
    return [root, *(node for child in root.__subclasses__() for node in _tree(child))]


def error_for_code(code: str) -> type[SplitInferError] | None:
    """Return the class with this stable `code`, or None; used to name a sealed refusal."""
    return next((error for error in _tree(SplitInferError) if error.code == code), None)
