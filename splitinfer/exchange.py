"""One sealed exchange with the cloud, under one permit: keyset, request, reply, receipt; on the device.

permit -> appraised recipient -> sealed request -> released -> transport -> opened reply -> checked receipt

What happens after a lost connection is `resume`'s; here it is one reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from splitinfer import schedule
from splitinfer.attestation.appraise import SeenKeysets, appraise
from splitinfer.attestation.sender import sender_id
from splitinfer.egress.gate import Permit
from splitinfer.egress.receipts import check_receipt, check_signature
from splitinfer.errors import (
    LayoutMismatchError,
    ManifestError,
    RecipientMismatchError,
    TransportError,
    TruncatedError,
    UsageError,
    VerificationError,
)
from splitinfer.handoff import (
    CacheSink,
    PackedCache,
    Route,
    SamplingParams,
    Transport,
    VerifiedRecipient,
)
from splitinfer.placement import Step
from splitinfer.receive.expectations import Expectations
from splitinfer.receive.replies import OpenedReply, SentRequest, open_reply
from splitinfer.receive.tokens import TOKEN_BYTES, slab_tokens, token_slab
from splitinfer.resume import LastingReply, Sent, read_all
from splitinfer.sealing.frames import Frame, frame_count
from splitinfer.sealing.manifest import (
    CacheWire,
    ModelWire,
    NumericsWire,
    RequestManifest,
    SamplingWire,
    SessionWire,
    TokensWire,
    manifest_region,
)
from splitinfer.sealing.receipt import Receipt
from splitinfer.sealing.signing import signer
from splitinfer.sealing.stream import PROMPT_CHUNK_BYTES, TAG_BYTES, chunk_count
from splitinfer.sealing.transfer import HEAD_BOUND_BYTES, SealedBody, TransferKeys, seal_request
from splitinfer.sealing.wire import VERSION

__all__ = ["Ask", "Common", "Exchange", "Place", "SealedAsk", "close_ask", "decode_ask", "prefill_ask", "read_keyset"]
__all__ += ["rounds_ask", "rows_ask", "seal_ask"]

MAX_KEYSET_BYTES = 64 * 1024
_SMALL_ROWS_BYTES = 1024 * 1024
T = TypeVar("T")


@dataclass(slots=True)
class Ask:
    """What to send, before it is known to which keys: sealed manifest fields, pieces, and their exact sizes.

    Where records follow, `following_bytes` is the most that they take; `packing` and `bucket` are then what the log
    says instead of codec and tokens.
    """

    route: Route
    manifest: RequestManifest = field(repr=False)
    # Iterated again for a resend, and must yield the same bytes then.
    pieces: Iterable[memoryview | bytes] = field(repr=False)
    following_bytes: int
    chunk_bytes: int
    packing: str = ""
    bucket: int | None = None

    @property
    def tokens_bucket(self) -> int:
        """Return the size class of the tokens that it brings; 0 for a session's end, which brings none."""
        manifest = self.manifest
        if self.bucket is not None:
            return self.bucket
        if manifest.kind == "decode":
            return manifest.tokens.padded - manifest.session.base_tokens
        return slab_tokens(manifest) if manifest.kind in {"prefill", "rows"} else 0

    @property
    def bytes_up_bound(self) -> int:
        """Return the most bytes that this request's body can have."""
        region = len(manifest_region(self.manifest.to_bytes(), chunk_bytes=self.chunk_bytes))
        chunks = chunk_count(region + self.following_bytes, self.chunk_bytes)
        return HEAD_BOUND_BYTES + chunks * (self.chunk_bytes + TAG_BYTES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a transfer stands in its session (see `manifest.SessionWire`); by default a first turn, not kept."""

    turn: int = 0
    parent_root: str = ""
    base_tokens: int = 0
    keep: bool = False


_FIRST = Place()


@dataclass(frozen=True, slots=True)
class Common:
    """The sealed manifest's fields that every request of a run shares."""

    policy_sha256: str
    codec: str
    pad: str
    session_id: str
    model: ModelWire
    numerics: NumericsWire
    artefact_sha256: str | None = None


def prefill_ask(
    common: Common,
    token_ids: tuple[int, ...],
    steps: tuple[Step, ...],
    *,
    place: Place = _FIRST,
    is_public: bool = False,
) -> Ask:
    """Ask for the cache of these tokens, or for the rows that the device lacks; the token slab is padded to its class.

    What the cloud holds of a session is not sent again. Of public text, of which the cloud holds nothing for sure, all
    ids are sent, and the base is what the device holds.
    """
    tokens = _tokens(len(token_ids), place)
    manifest = _manifest(
        common, "prefill", tokens, _from(steps, 0 if is_public else place.base_tokens), place=place, is_public=is_public
    )
    sent = token_ids if is_public else token_ids[place.base_tokens :]
    padded = slab_tokens(manifest)
    slab = token_slab(sent, padded_tokens=padded)
    return Ask(Route.PREFILL, manifest, [slab], padded * TOKEN_BYTES, PROMPT_CHUNK_BYTES)


def rows_ask(common: Common, rows: bytes, steps: tuple[Step, ...], *, tokens: int) -> Ask:
    """Ask for the cache of a prompt that is sent as the bytes of its embedding rows, all of one length."""
    manifest = _manifest(common, "rows", _tokens(tokens, _FIRST), steps)
    total = slab_tokens(manifest) * (len(rows) // tokens)
    # A short prompt's manifest shall not fill a chunk larger than its rows.
    chunk_bytes = PROMPT_CHUNK_BYTES if total <= _SMALL_ROWS_BYTES else schedule.cache_chunk_bytes(total)
    return Ask(Route.PREFILL, manifest, [rows.ljust(total, b"\x00")], total, chunk_bytes)


def close_ask(common: Common) -> Ask:
    """Ask the cloud to erase what it holds of the session."""
    manifest = _manifest(common, "close", _tokens(1, _FIRST), ())
    return Ask(Route.PREFILL, manifest, [], 0, PROMPT_CHUNK_BYTES)


def rounds_ask(common: Common, *, protection: str, rounds_bytes: int) -> Ask:
    """Ask to begin rounds under a protection; `rounds_bytes` is the most that their records take.

    No token count is stated: what the cloud learns of it, it learns from the rounds.
    """
    manifest = _manifest(common, "rounds", _tokens(1, _FIRST), ())
    manifest = manifest.model_copy(update={"protection": protection})
    return Ask(Route.SESSION, manifest, [], rounds_bytes, PROMPT_CHUNK_BYTES)


def decode_ask(
    common: Common,
    packed: PackedCache,
    *,
    steps: tuple[Step, ...],
    last_token: int,
    params: SamplingParams,
    place: Place = _FIRST,
) -> Ask:
    """Ask for the answer to this cache, packed from the place's base on, and last token."""
    manifest = _manifest(
        common,
        "decode",
        _tokens(packed.true_tokens, place),
        _from(steps, place.base_tokens),
        place=place,
        cache=CacheWire.of(packed.layout),
        coded_bytes=packed.size_bytes if packed.is_variable else None,
        last_token=last_token,
        sampling=SamplingWire.of(params),
    )
    total = packed.size_bytes
    return Ask(
        Route.DECODE,
        manifest,
        _Slabs(packed),
        total,
        schedule.cache_chunk_bytes(total, is_small=common.artefact_sha256 is not None),
    )


@dataclass(frozen=True, slots=True)
class _Slabs:
    """A cache's slabs, from the first one on whenever they are iterated."""

    packed: PackedCache = field(repr=False)

    def __iter__(self) -> Iterator[memoryview]:
        return self.packed.slabs()


def _tokens(true: int, place: Place) -> TokensWire:
    return TokensWire(true=true, padded=schedule.pad_new_tokens(true, place.base_tokens))


def _from(steps: tuple[Step, ...], base_tokens: int) -> tuple[Step, ...]:
    return tuple(step for step in steps if step[0] >= base_tokens)


def _manifest(
    common: Common,
    kind: Literal["prefill", "rows", "decode", "close", "rounds"],
    tokens: TokensWire,
    steps: tuple[Step, ...],
    *,
    place: Place = _FIRST,
    is_public: bool = False,
    cache: CacheWire | None = None,
    coded_bytes: int | None = None,
    last_token: int | None = None,
    sampling: SamplingWire | None = None,
) -> RequestManifest:
    return RequestManifest(
        version=VERSION,
        kind=kind,
        protection="sealed",
        codec=common.codec,
        artefact_sha256=common.artefact_sha256,
        pad=common.pad,
        policy_sha256=common.policy_sha256,
        log_checkpoint="0" * 64,
        model=common.model,
        numerics=common.numerics,
        session=SessionWire(
            session_id=common.session_id,
            turn=place.turn,
            parent_root=place.parent_root,
            base_tokens=place.base_tokens,
            keep=place.keep,
        ),
        public=is_public,
        tokens=tokens,
        steps=list(steps),
        cache=cache,
        coded_bytes=coded_bytes,
        last_token=last_token,
        sampling=sampling,
    )


@dataclass(frozen=True, slots=True)
class SealedAsk:
    """An ask, sealed to a recipient: the manifest as it was sealed, the body to send, and what opens the reply."""

    manifest: RequestManifest = field(repr=False)
    body: SealedBody
    keys: TransferKeys
    sender_id: str

    def sent(self, recipient: VerifiedRecipient) -> SentRequest:
        """Return what is kept in order to open the reply."""
        return SentRequest(
            self.keys,
            self.manifest.digest.hex(),
            recipient.receipt_public_key,
            self.manifest.tokens.true,
            self.manifest.session.base_tokens,
        )


def seal_ask(
    ask: Ask,
    recipient: VerifiedRecipient,
    *,
    log_checkpoint: str,
    device_key: Ed25519PrivateKey,
    now: int,
    randomness: Callable[[int], bytes],
) -> SealedAsk:
    """Seal an ask; raises RecipientMismatchError where the recipient's certificate does not allow it."""
    needed = "prefill" if ask.manifest.kind == "rows" else ask.manifest.kind
    if needed != "close" and needed not in recipient.capabilities:
        raise RecipientMismatchError(f"the recipient's certificate does not allow it to {_VERBS[needed]}")
    manifest = ask.manifest.model_copy(update={"log_checkpoint": log_checkpoint})
    own_id = sender_id(recipient.keyset_digest, device_key.public_key().public_bytes_raw())
    body, keys = seal_request(
        ask.pieces,
        sealed_manifest=manifest.to_bytes(),
        # What follows a session's opening are records, which are no part of its stream.
        following_bytes=0 if manifest.kind == "rounds" else ask.following_bytes,
        chunk_bytes=ask.chunk_bytes,
        recipient=recipient,
        sender_id=own_id,
        signer=signer(device_key),
        now=now,
        randomness=randomness,
    )
    return SealedAsk(manifest, body, keys, own_id)


_VERBS = {"prefill": "prefill", "decode": "decode", "rounds": "compute in rounds"}


class Exchange:
    """Carries one ask through the permit; afterwards `receipt` is the checked receipt and `reply` what was opened."""

    def __init__(
        self,
        permit: Permit,
        transport: Transport,
        *,
        device_key: Ed25519PrivateKey,
        expected: Expectations,
        clock: Callable[[], float],
        randomness: Callable[[int], bytes],
        resume_attempts: int = 0,
    ) -> None:
        self._permit, self._transport, self._device_key = permit, transport, device_key
        self._expected, self._clock, self._randomness = expected, clock, randomness
        self._resume_attempts = resume_attempts
        self._appraise: Callable[[], VerifiedRecipient] | None = None
        self._raw: LastingReply | None = None
        self._recipient: VerifiedRecipient | None = None
        self._max_new_tokens = 0
        self._keepable_tokens = 0
        self.reply: OpenedReply | None = None
        self.receipt: Receipt | None = None

    @property
    def has_sent(self) -> bool:
        """Tell whether any byte of a sealed body left."""
        return self._permit.bytes_sent > 0

    @property
    def was_refused(self) -> bool:
        """Tell whether the cloud answered with a sealed refusal."""
        was_refused_before = self._raw is not None and self._raw.was_refused
        return was_refused_before or (self.reply is not None and self.reply.was_refused)

    @property
    def transfer_id(self) -> str:
        """Return the id of the transfer, empty before it was sealed."""
        return self._raw.call.transfer_id if self._raw is not None and self._raw.call is not None else ""

    @property
    def received_root(self) -> str:
        """Return the ciphertext root of what was verified of the reply, empty before it was opened."""
        return self.reply.reader.root().hex() if self.reply is not None else ""

    def appraise(self, *, pinned_sha256: str, seen: SeenKeysets) -> VerifiedRecipient:
        """Fetch the keyset through the gate and appraise it; done again, for a fresh nonce, before a resume."""

        def fetch() -> VerifiedRecipient:
            data = read_keyset(self._transport, self._permit)
            return appraise(data, pinned_sha256=pinned_sha256, now=int(self._clock()), seen=seen)

        self._appraise = fetch
        return fetch()

    def send(self, ask: Ask, recipient: VerifiedRecipient) -> OpenedReply:
        """Seal, release and send the ask; return the reply once its manifest is authentic.

        A sealed refusal raises the error that it names.
        """
        sealed = seal_ask(
            ask,
            recipient,
            log_checkpoint=self._permit.checkpoint_commitment,
            device_key=self._device_key,
            now=int(self._clock()),
            randomness=self._randomness,
        )
        manifest, keys = sealed.manifest, sealed.keys
        self._recipient = recipient
        self._max_new_tokens = manifest.sampling.max_new_tokens if manifest.sampling else 0
        self._keepable_tokens = manifest.tokens.true if manifest.session.keep or manifest.public else 0
        own, sign = sealed.sender_id, signer(self._device_key)
        self._raw = self._lasting(Sent(ask.route, sealed.body, keys, recipient, own, sign))
        self._raw.exchange()
        reply = self.reply = open_reply(self._raw, sealed.sent(recipient), self._expected)
        self._raw.framed(chunks=reply.reader.count, chunk_bytes=reply.reader.chunk_bytes)
        if self._raw.is_early and reply.manifest.kind != "refusal":
            raise TransportError("the cloud answered before it had the whole request; the connection is useless")
        if reply.manifest.kind == "refusal":
            error = reply.refuse()
            if reply.receipt is not None:
                self._check_receipt(reply.receipt, is_refusal=True)
            raise error
        _check_kind(reply, ask)
        return reply

    def _lasting(self, sent: Sent) -> LastingReply:
        attempts = self._resume_attempts if self._appraise else 0
        fetch = self._appraise or (lambda: sent.recipient)
        return LastingReply(sent, self._permit, self._transport, fetch=fetch, attempts=attempts)

    def receive_cache(self, reply: OpenedReply, sink: CacheSink[T]) -> T:
        """Receive a cache, check the receipt, and return what the sink finished.

        Raises TransportError where the connection is lost for good: what came stays in the sink, and the caller wipes.
        """
        sizes, total = sink.sizes(), sink.size_bytes
        return reply.receive_cache(sink, sizes, data_bytes=total, check_receipt=self._check_receipt).payload

    def receive_frames(self, reply: OpenedReply) -> Iterator[Frame]:
        """Yield verified frames, then check the receipt."""
        left = self._max_new_tokens
        for frame in reply.frames():
            left -= len(frame.token_ids)
            if left < 0 or any(token_id >= self._expected.vocabulary for token_id in frame.token_ids):
                raise LayoutMismatchError("the reply holds more tokens than were asked for, or unknown ones")
            yield frame
        if reply.receipt is None:
            raise TruncatedError("the reply was not read to its receipt")
        self._check_receipt(reply.receipt)

    def receive_closed(self, reply: OpenedReply) -> None:
        """Read the answer to a session's end and check its receipt."""
        reply.receive_closed()
        if reply.receipt is not None:
            self._check_receipt(reply.receipt)

    def close(self) -> None:
        """Note the root of what arrived and close the connection."""
        if self._raw is None:
            return
        if self._raw.call is not None:
            self._raw.call.received_root = self.received_root
        self._raw.close()

    def _check_receipt(self, receipt: Receipt, *, is_refusal: bool = False) -> None:
        call, recipient, reply = self._raw.call if self._raw else None, self._recipient, self.reply
        if call is None or recipient is None or reply is None:
            raise UsageError("nothing was sent yet")
        check_signature(receipt, recipient)
        # Signed, so it is kept and logged even where it says something else than what was sent.
        self.receipt = receipt
        check_receipt(
            receipt,
            permit=self._permit,
            call=call,
            recipient=recipient,
            manifest_sha256=reply.sent.keys.manifest_digest.hex(),
            is_refusal=is_refusal,
        )
        if receipt.event_count("kept") not in (None, self._keepable_tokens or None):
            raise VerificationError("the receipt says that the cloud kept what it was not asked to keep")


def _check_kind(reply: OpenedReply, ask: Ask) -> None:
    """Refuse a reply of another kind, number of frames or codec than this request has."""
    sampling = ask.manifest.sampling
    kind, frames = ("tokens", frame_count(sampling.max_new_tokens)) if sampling else ("cache", 0)
    kind = "closed" if ask.manifest.kind == "close" else kind
    if (reply.manifest.kind, reply.manifest.frames) != (kind, frames):
        raise LayoutMismatchError("the reply is of another kind or size than was asked for")
    wanted = (ask.manifest.codec, ask.manifest.artefact_sha256)
    if (reply.manifest.codec, reply.manifest.artefact_sha256) != wanted:
        raise ManifestError("the reply is in another codec than was asked for")


def read_keyset(transport: Transport, permit: Permit) -> bytes:
    """Fetch a keyset through the gate, unappraised; raises LimitExceededError above 64 KiB."""
    released, _ = permit.release(Route.KEYSET)
    return read_all(transport.exchange(released), limit_bytes=MAX_KEYSET_BYTES, what="keyset")
