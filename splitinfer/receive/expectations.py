"""What a recipient accepts, compared with what an authenticated manifest says (checks 9 and 14 to 17); both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitinfer import schedule
from splitinfer.errors import ArtefactMismatchError, LayoutMismatchError, ManifestError, ModelMismatchError, ReplayError
from splitinfer.handoff import CacheLayout, ModelIdentity
from splitinfer.sealing.manifest import CacheWire, ModelWire, RequestManifest, ResponseManifest

__all__ = ["ACCEPTED_CODECS", "CALIBRATED_CODECS", "Expectations", "check_request", "check_response"]

CALIBRATED_CODECS = ("ftc1-2", "ftc1-1.5", "ftc1-1", "ftc1-0.75", "ftc1-0.5", "ftc1-0.375")
ACCEPTED_CODECS = ("raw", "lossless", "q8", "k8v4", "k6v4", "q4", *CALIBRATED_CODECS)
VARIABLE_CODECS = ("lossless",)
ACCEPTED_PADS = ("padme",)
_EMPTY_KINDS = ("close", "rounds")
ACCEPTED_PROTECTIONS = ("sealed",)
ROUNDS_PROTECTIONS = ("homomorphic", "masked")


@dataclass(frozen=True, slots=True)
class Expectations:
    """What this side's own model is, and the digest of the artefact that it holds for calibrated codecs, if any."""

    model: ModelIdentity
    layout: CacheLayout
    max_positions: int
    vocabulary: int
    artefact_sha256: str | None = None


def check_request(manifest: RequestManifest, expected: Expectations) -> None:
    """Run checks 14 to 17 on a request's manifest; what a session holds is compared where it is held."""
    _check_model(manifest.model, expected.model, here="cloud")
    _check_session(manifest)
    _check_request_layout(manifest, expected)
    accepted = ROUNDS_PROTECTIONS if manifest.kind == "rounds" else ACCEPTED_PROTECTIONS
    if manifest.protection not in accepted:
        raise ManifestError(f"protection must be one of {', '.join(accepted)}")
    if manifest.codec not in ACCEPTED_CODECS or manifest.pad not in ACCEPTED_PADS:
        raise ManifestError(f"codec must be one of {', '.join(ACCEPTED_CODECS)}, pad one of {', '.join(ACCEPTED_PADS)}")
    _check_artefact(manifest, expected, here="cloud")


def check_response(
    manifest: ResponseManifest, expected: Expectations, *, tokens: int, base_tokens: int = 0, request_sha256: str
) -> None:
    """Run checks 9, 14, 15 and 17 on a reply's manifest; none on a refusal, which has no model to compare."""
    if manifest.kind == "refusal":
        return
    if manifest.request_manifest_sha256 != request_sha256:
        raise ReplayError("the reply answers another request")
    if manifest.model is None:
        raise ManifestError("the reply names no model")
    _check_model(manifest.model, expected.model, here="device")
    if manifest.codec not in ACCEPTED_CODECS:
        raise ManifestError(f"codec must be one of {', '.join(ACCEPTED_CODECS)}")
    _check_artefact(manifest, expected, here="device")
    if manifest.kind == "cache":
        if manifest.tokens is None or manifest.cache is None:
            raise LayoutMismatchError("the reply names no token count or layout for its cache")
        _check_counts(manifest.tokens.true, manifest.tokens.padded, base_tokens, expected)
        if manifest.tokens.true != tokens:
            raise LayoutMismatchError("the reply's cache has another number of tokens than were asked for")
        _check_cache(manifest.cache, expected)
    _check_coded_bytes(manifest, base_tokens, expected)


def _check_model(found: ModelWire, expected: ModelIdentity, *, here: Literal["device", "cloud"]) -> None:
    there = "cloud" if here == "device" else "device"
    for part in ("weights_sha256", "config_sha256", "tokenizer_sha256"):
        ours, theirs = getattr(expected, part), getattr(found, part)
        if ours != theirs:
            raise ModelMismatchError(
                f"{part} differs: {ours} on this side, {theirs} on the other",
                fields={f"{part}_{here}": ours, f"{part}_{there}": theirs},
            )


def _check_artefact(
    manifest: RequestManifest | ResponseManifest, expected: Expectations, *, here: Literal["device", "cloud"]
) -> None:
    """Refuse a calibrated codec whose artefact is not the one that this side holds, before any memory is taken."""
    found, ours = manifest.artefact_sha256, expected.artefact_sha256
    if (found is not None) is not (manifest.codec in CALIBRATED_CODECS):
        raise ManifestError("an artefact is named for a codec that has none, or is missing for one that needs it")
    if found is None or found == ours:
        return
    there = "cloud" if here == "device" else "device"
    raise ArtefactMismatchError(
        f"the artefact of codec {manifest.codec} differs: {ours or 'none'} on this side, {found} on the other; give "
        "both sides the same file",
        fields={f"artefact_sha256_{here}": ours or "", f"artefact_sha256_{there}": found},
    )


def _check_session(manifest: RequestManifest) -> None:
    """Refuse a place in a session that no transfer can have (check 16)."""
    session = manifest.session
    is_first = not session.turn
    if is_first is not (session.parent_root == "") or (is_first and session.base_tokens and not manifest.public):
        raise ReplayError("a first turn has neither parent nor base, a later one has both; send everything again")
    if not is_first and (not session.base_tokens or manifest.public or manifest.kind in _EMPTY_KINDS):
        raise ReplayError("a later turn continues the cache of one before it; send everything again")
    if manifest.kind == "rows" and (session.turn or session.keep):
        raise ReplayError("a prompt of rows stands in no session; send it so")
    if manifest.public and (session.keep or manifest.kind != "prefill"):
        raise ReplayError("public text is prefilled outside of any session; send it so")


def _check_counts(true: int, padded: int, base: int, expected: Expectations) -> None:
    if padded != schedule.pad_new_tokens(true, base):
        raise LayoutMismatchError("the padded token count is not the size class of the new ones")
    if true > expected.max_positions:
        raise LayoutMismatchError(f"more tokens than the model's {expected.max_positions} positions")


def _check_cache(found: CacheWire, expected: Expectations) -> None:
    if sum(run.count for run in found.layers) != len(expected.layout.layers) or found.layout() != expected.layout:
        raise LayoutMismatchError("the cache's layers, shapes or dtypes differ from the model's")


def _check_coded_bytes(manifest: RequestManifest | ResponseManifest, base: int, expected: Expectations) -> None:
    """Refuse an announced length that no cache here has, before any memory is taken for it."""
    if manifest.cache is not None and manifest.tokens is not None and manifest.codec in VARIABLE_CODECS:
        schedule.require_coded_bytes(manifest.coded_bytes, expected.layout, manifest.tokens.padded, base)
    elif manifest.coded_bytes is not None:
        raise LayoutMismatchError("a length is announced for contents whose length follows from the manifest")


def _check_request_layout(manifest: RequestManifest, expected: Expectations) -> None:
    true, base = manifest.tokens.true, manifest.session.base_tokens
    _check_counts(true, manifest.tokens.padded, base, expected)
    if manifest.kind != "decode":
        if (manifest.cache, manifest.last_token, manifest.sampling) != (None, None, None):
            raise LayoutMismatchError(f"a {manifest.kind} request carries neither cache nor sampling")
        _check_coded_bytes(manifest, base, expected)
    if manifest.kind in _EMPTY_KINDS:
        if manifest.steps or true != 1:
            raise LayoutMismatchError("a request that closes a session, or begins rounds, carries nothing")
        return
    # Public text is computed from its start, or found in the prefix cache, whatever the device holds of it.
    _check_steps(manifest.steps, 0 if manifest.public else base, true)
    if manifest.kind in {"prefill", "rows"}:
        return
    if manifest.cache is None or manifest.last_token is None or manifest.sampling is None:
        raise LayoutMismatchError("a decode request names a cache layout, a last token and sampling")
    _check_cache(manifest.cache, expected)
    _check_coded_bytes(manifest, base, expected)
    if manifest.last_token >= expected.vocabulary:
        raise LayoutMismatchError("the last token is not in the vocabulary")
    if true + 1 + manifest.sampling.max_new_tokens > expected.max_positions:
        raise LayoutMismatchError(f"prompt and answer exceed the model's {expected.max_positions} positions")


def _check_steps(steps: list[tuple[int, int]], base: int, tokens: int) -> None:
    ends = [base, *(stop for _, stop in steps)]
    in_order = all(start == end < stop for (start, stop), end in zip(steps, ends, strict=False))
    if not in_order or ends[-1] != tokens:
        raise LayoutMismatchError("the prefill steps do not cover the tokens once, in order")
