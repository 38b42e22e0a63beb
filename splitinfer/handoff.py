"""The types that pass between stages, and the protocols that join them; both sides, no tensor in any of them.

Three types are proofs, each made in exactly one module: `VerifiedRecipient` (attestation.appraise),
`ReleasedTransfer` (egress.gate) and `VerifiedTransfer` (receive.intake). A function that takes one cannot be
handed anything that skipped that stage; `tests/unit/test_structure.py` looks for other constructors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Literal, Protocol, TypeVar

__all__ = [
    "CacheLayout",
    "CacheSink",
    "Cloud",
    "CloudReply",
    "Label",
    "LayerKind",
    "LayerLayout",
    "Link",
    "Meter",
    "ModelIdentity",
    "Numerics",
    "PackedCache",
    "PromptTokens",
    "ReleasedTransfer",
    "Reply",
    "Role",
    "Route",
    "RowRule",
    "SamplingParams",
    "Segment",
    "Sink",
    "Source",
    "TensorLayout",
    "TensorName",
    "Transport",
    "VerifiedRecipient",
    "VerifiedTransfer",
]


Payload_co = TypeVar("Payload_co", covariant=True)


# --- prompt ---------------------------------------------------------------------------------------------------


class Role(StrEnum):
    """What a segment is to the conversation."""

    DOCUMENT = "document"
    NOTE = "note"
    QUESTION = "question"
    MESSAGE = "message"
    ANSWER = "answer"


class Label(StrEnum):
    """Whether a segment's text may be read by the other side; unlabelled text is private."""

    PUBLIC = "public"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a prompt. `source` is the name by which a policy rule may find it, never sent or logged.

    A `label` of None is unlabelled: the policy's rules decide, and without one the text is private. `location` is the
    absolute path of a text that came from a file, so that a rule for private finds it however it was named.
    """

    role: Role
    text: str = field(repr=False)
    label: Label | None = None
    source: str = field(default="", repr=False)
    location: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A tokenised prompt: ids depend on roles and texts only, never on labels or mode.

    `segment_lengths` sum to `len(token_ids)`; template literals belong to the segment after them, the trailing
    ones to the last segment. `labels` has one entry a segment; so has `text_spans`, the range of each segment's own
    text between the literals, where it is known.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    segment_lengths: tuple[int, ...]
    labels: tuple[Label, ...]
    text_spans: tuple[tuple[int, int], ...] = ()

    @property
    def leading_public_tokens(self) -> int:
        """Count the tokens of the leading run of public segments, the only ones that may be prefilled elsewhere."""
        total = 0
        for length, label in zip(self.segment_lengths, self.labels, strict=True):
            if label is not Label.PUBLIC:
                break
            total += length
        return total

    @property
    def private_positions(self) -> tuple[int, ...]:
        """Return where the private texts' own tokens stand; whole private segments where the spans are not known."""
        ends = list(itertools.accumulate(self.segment_lengths))
        spans = self.text_spans or tuple(zip([0, *ends], ends, strict=False))
        private = (span for span, label in zip(spans, self.labels, strict=True) if label is not Label.PUBLIC)
        return tuple(position for start, stop in private for position in range(start, stop))

    @property
    def public_tokens(self) -> int:
        """Count the tokens of all public segments."""
        pairs = zip(self.segment_lengths, self.labels, strict=True)
        return sum(length for length, label in pairs if label is Label.PUBLIC)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen: greedy at temperature 0, else seeded sampling.

    `top_k` 0 and `top_p` 1.0 switch those filters off; `stop` strings end the text before them.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = field(default=(), repr=False)


# --- model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Identify a model by digests (lower-case hex SHA-256), never by name."""

    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True, slots=True)
class Numerics:
    """What must be equal on both sides for bit-equal results."""

    torch: str
    device: str
    dtype: str
    attention: str
    threads: int


LayerKind = Literal[
    "full",
    "sliding",
    "indexed",
    "linear",
    "linear_full",
    "linear_sliding",
    "compressed",
    "compressed_sparse",
    "lightning",
    "empty",
]
TensorName = Literal[
    "keys",
    "values",
    "indexer_keys",
    "conv_states_0",
    "conv_states_1",
    "conv_states_2",
    "conv_states_3",
    "recurrent_states_0",
    "recurrent_states_1",
    "recurrent_states_2",
    "recurrent_states_3",
    "compressor_buffer_kv",
    "compressor_buffer_gate",
    "compressor_compressed_kv",
    "compressor_overlap_kv",
    "compressor_overlap_gate",
    "indexer_buffer_kv",
    "indexer_buffer_gate",
    "indexer_compressed_kv",
    "indexer_overlap_kv",
    "indexer_overlap_gate",
    "linear_state",
]
RowRule = Literal["tokens", "window", "entries", "remainder", "overlap", "fixed"]


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a cache layer: [1, *before, rows, *after], or [1, *before] where `rows` is "fixed".

    `rows` is the rule by which the row axis follows from the number of tokens (`schedule.held_rows`).
    """

    name: TensorName
    dtype: str
    rows: RowRule
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One cache layer: its kind and tensors, in the order of the kind's table.

    `window` is W where the layer keeps the last W - 1 tokens, `stride` the number of tokens that make one compressed
    entry; 0 where there is none.
    """

    kind: LayerKind
    tensors: tuple[TensorLayout, ...]
    window: int = 0
    stride: int = 0


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The cache's layers in order, known from a short forward at load."""

    layers: tuple[LayerLayout, ...]


# --- caches as bytes ------------------------------------------------------------------------------------------


class PackedCache(Protocol):
    """A cache as slabs of bytes, in the order of `schedule.slabs`, with the lengths of its codec."""

    @property
    def layout(self) -> CacheLayout:
        """Return the layout that was packed."""

    @property
    def true_tokens(self) -> int:
        """Return how many rows are tokens; later rows are zero padding."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all slabs."""

    @property
    def is_variable(self) -> bool:
        """Tell whether that length depends on the contents, so that it must be announced."""

    def slabs(self) -> Iterator[memoryview]:
        """Yield every slab once, in order; a slab is valid until the next one is asked for.

        Can be called again, for a resend, and yields the same bytes then.
        """

    def wipe(self) -> None:
        """Overwrite what is held (best effort in CPython) and refuse further use."""


class Sink(Protocol[Payload_co]):
    """Where `receive` decrypts to: memory that `codec` preallocated, without knowing tensors."""

    def slab(self) -> memoryview:
        """Return the writable memory of the next slab in schedule order, to be filled before the next is asked for."""

    def finish(self) -> Payload_co:
        """Return what was received (a CacheSnapshot, token ids); called only after the last check."""

    def wipe(self) -> None:
        """Overwrite and drop everything that was received."""


class CacheSink(Sink[Payload_co], Protocol[Payload_co]):
    """A sink of slabs whose lengths may become known only as they arrive."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all slabs."""

    def sizes(self) -> Iterator[int]:
        """Yield the length of each slab just before `slab` gives out its memory."""


# --- recipients -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifiedRecipient:
    """A recipient whose keyset was appraised against the pinned identity; made in `attestation.appraise` only."""

    identity_sha256: str
    replica_id: str
    generation: int
    epoch: int
    keyset_digest: bytes
    kem_public_key: bytes = field(repr=False)
    receipt_public_key: bytes = field(repr=False)
    not_after: int
    capabilities: tuple[str, ...]
    server_nonce: bytes = field(repr=False)


# --- leaving the device ---------------------------------------------------------------------------------------


class Route(StrEnum):
    """Every call that the device may make."""

    KEYSET = "GET /v1/keyset"
    PREFILL = "POST /v1/prefill"
    DECODE = "POST /v1/decode"
    STATE = "POST /v1/transfers/state"
    RESUME = "POST /v1/transfers/resume"
    SESSION = "POST /v1/session"


class Meter(Protocol):
    """Counts what a transfer moved, body bytes only."""

    def received(self, data: memoryview | bytes) -> None:
        """Count body bytes that came back."""


@dataclass(frozen=True, slots=True)
class ReleasedTransfer:
    """What the gate let go: the only thing that a transport sends; made in `egress.gate` only.

    `body` yields exactly `body_bytes` bytes, or at most as many on the session's route; the permit counts them as they
    are pulled.
    """

    route: Route
    body_bytes: int
    body: Iterator[memoryview | bytes] = field(repr=False)
    replica_id: str
    meter: Meter = field(repr=False)


class Reply(Protocol):
    """The other side's answer as a stream of body bytes; every byte read is counted by the transfer's meter."""

    @property
    def body_bytes(self) -> int | None:
        """Return the declared Content-Length, or None."""

    @property
    def is_early(self) -> bool:
        """Tell whether it came before the whole body was sent; then only a refusal may be in it."""

    def readinto(self, buffer: memoryview) -> int:
        """Read up to len(buffer) body bytes; 0 at the end. Raise TransportError where the connection fails."""

    def close(self) -> None:
        """Close the connection; idempotent."""


class Link(Protocol):
    """One open connection on which both sides speak in turn; every byte read is counted by the transfer's meter."""

    def send(self) -> None:
        """Pull one piece of the released body and send it."""

    def readinto(self, buffer: memoryview) -> int:
        """Wait for bytes of the reply and read up to len(buffer) of them; 0 at its end.

        Raise TransportError where the connection fails.
        """

    def close(self) -> None:
        """Close the connection; idempotent."""


class Transport(Protocol):
    """Moves one released transfer and returns the reply; raises TransportError and its kinds only."""

    def exchange(self, transfer: ReleasedTransfer) -> Reply:
        """Send the body, then return the reply once its head arrived with status 200."""

    def connect(self, transfer: ReleasedTransfer) -> Link:
        """Open a session's connection; its body is sent piece by piece, when the link is told to."""


# --- arriving -------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Untrusted body bytes as they arrive, on either side."""

    def readinto(self, buffer: memoryview) -> int:
        """Read up to len(buffer) bytes; 0 at the end.

        Raises TransportError where the connection was lost, and only then: what came before may be kept and gone on
        with. A body that is merely wrong (too short, too slow) raises another error, or ends.
        """


@dataclass(frozen=True, slots=True)
class VerifiedTransfer(Generic[Payload_co]):
    """A stream of which every check passed; made in `receive.intake` only. `payload` is what the sink finished."""

    payload: Payload_co = field(repr=False)
    ciphertext_root: bytes
    chunk_count: int


@dataclass(frozen=True, slots=True)
class CloudReply:
    """The recipient's answer to one request, free of HTTP: the body streams, `body_bytes` is its exact length.

    None is a session's: its body answers what arrives and has no length beforehand.
    """

    body_bytes: int | None
    body: Iterator[memoryview | bytes] = field(repr=False)


class Cloud(Protocol):
    """The recipient as its doors see it: HTTP in `server`, in-memory in `transport.memory`.

    Raises SplitInferError before the reply starts; the door maps it to a problem document with a code only, but a
    TransportError, which says that `body` was lost. Whoever stops reading a reply's body closes it.
    """

    def handle(self, route: Route, body: Source) -> CloudReply:
        """Answer one call."""
