"""A session on the device: policy, model and audit log wired together, prompts in, answers out.

Read this file first, then `flow.py`, which is one run step by step, then its twin on the other side,
`cloud/service.py`.
"""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from splitinfer.answer import Answer
from splitinfer.calibration.artefacts import Held, find_artefact, find_certificate
from splitinfer.chooser import Chooser, permitted
from splitinfer.codec.transform import Artefact
from splitinfer.conversation import LIMIT_BYTES, Conversation
from splitinfer.device import Device
from splitinfer.egress.gate import Gate
from splitinfer.egress.log import AuditLog
from splitinfer.errors import ArtefactError, ModelMismatchError, SplitInferError, UsageError
from splitinfer.flow import Flow
from splitinfer.handoff import SamplingParams, Segment, Transport
from splitinfer.home import Home
from splitinfer.home.audit_log import open_log, receipt_keeper
from splitinfer.home.cache_store import open_store
from splitinfer.home.clips import ClipFile
from splitinfer.home.distances import DistanceFile
from splitinfer.home.leakage import LeakageFile
from splitinfer.home.losses import LossFile
from splitinfer.home.masks import open_masks
from splitinfer.home.remotes import Remote, load_remote
from splitinfer.home.seen import SeenFile
from splitinfer.home.speeds import SpeedFile
from splitinfer.model.digest_cache import DigestCache
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.model.sampling import require_sampling_params
from splitinfer.selector import Speeds
from splitinfer.store import CacheStore
from splitinfer.transport.http import HttpTransport
from trust_models.codecs import AUTO, CALIBRATED, Loss, require_codec
from trust_models.modes import MODES, TrustMode
from trust_models.policy import Policy, Sampling, resolve

__all__ = ["AnswerStream", "Session", "load_artefact", "load_engine"]


_FORGETFUL = (TrustMode.SEALED_PREFILL, TrustMode.HOMOMORPHIC)


class Session:
    """One policy, one loaded model, one audit log; safe for one thread. Made by `open`."""

    def __init__(self, device: Device, *, log: AuditLog) -> None:
        self._device, self._log = device, log
        self._streams: weakref.WeakSet[AnswerStream] = weakref.WeakSet()

    @classmethod
    def open(
        cls,
        policy: str | Path | Policy,
        *,
        home: str | Path | Home | None = None,
        engine: Engine | None = None,
        transport: Transport | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        use_store: bool = True,
        remember: bool = True,
    ) -> Session:
        """Open a session: the policy (a built-in name, a TOML file, or a Policy), the model that it names, the log.

        `engine` reuses a model that is loaded already, `transport` replaces HTTP, `on_prefill(done, total)` is called
        after every prefill step on the device. `use_store` False neither reads nor writes the store of public
        caches, whatever the policy says. `remember` False goes on from nothing: every run is a conversation of its
        own. Raises PolicyError, ModelError and its kinds, UnsupportedCacheError,
        StateError and StoreError, TransportError for an unusable URL or CA, AuditLogError.
        """
        rules = policy if isinstance(policy, Policy) else resolve(str(policy))
        folder = home if isinstance(home, Home) else Home.find(str(home) if home else None)
        remote = _remote(rules, folder)
        pin = rules.model.weights_sha256
        engine = engine or load_engine(
            rules.model.source, home=folder, expected=pin, matrices=_computes_with_matrices(rules)
        )
        if pin is not None and engine.identity.weights_sha256 != pin:
            found = engine.identity.weights_sha256
            raise ModelMismatchError(f"the policy pins the weights {pin}, the engine given has {found}")
        artefact, chooser = None, None
        if remote is not None:
            artefact = load_artefact(engine, home=folder) if rules.transfer.codec in (*CALIBRATED, AUTO) else None
            chooser = _require_codec(rules, folder, engine, artefact, remote.identity_sha256)
        transport = transport or (HttpTransport(remote.url, tls_ca=remote.tls_ca) if remote else None)
        key = folder.key("device")
        store = _store(rules, folder) if use_store else None
        # Last, so that nothing after it can fail and leave the log open.
        log = open_log(folder, Path(rules.audit.path) if rules.audit.path else None)
        device = Device(
            policy=rules,
            engine=engine,
            gate=Gate(log, keep_receipt=receipt_keeper(folder)),
            pinned_sha256=remote.identity_sha256 if remote else "",
            transport=transport,
            key=key,
            seen=SeenFile(folder),
            clock=time.time,
            randomness=secrets.token_bytes,
            conversation=_conversation(rules, remember=remember),
            on_prefill=on_prefill,
            store=store,
            artefact=artefact,
            chooser=chooser,
            distances=DistanceFile(folder),
            clips=ClipFile(folder),
            measured=LeakageFile(folder).get(engine.identity.weights_sha256, rules.digest) if rules.noise else None,
            masks=partial(open_masks, folder, engine.identity) if rules.mode is TrustMode.MASKED else None,
        )
        return cls(device, log=log)

    @property
    def policy(self) -> Policy:
        """Return the policy in force."""
        return self._device.policy

    def run(self, segments: Sequence[Segment], **sampling: object) -> Answer:
        """Run a prompt to its end; keyword arguments are the fields of SamplingParams.

        Where a curious cloud decodes, the policy says them, and another value raises UsageError.
        """
        stream = self.stream(segments, **sampling)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, segments: Sequence[Segment], **sampling: object) -> AnswerStream:
        """Run a prompt and yield its text as it comes; `answer` is there at the end.

        Raises while it is read: PromptError kinds, EgressDeniedError, AttestationError kinds, VerificationError
        kinds, TransportError kinds, AuditLogError.
        """
        stream = AnswerStream(Flow(self._device, segments, _params(sampling, self.policy)))
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Stop what still streams, which logs it as aborted, end the session at the cloud, wipe, close the log.

        Where the cloud cannot be told, the log says so, and its idle limit erases what it holds.
        """
        for stream in list(self._streams):
            stream.close()
        conversation = self._device.conversation
        try:
            if conversation.may_be_held_by_cloud:
                conversation.may_be_held_by_cloud = False
                with suppress(SplitInferError):
                    Flow(self._device, (), SamplingParams()).end_session()
        finally:
            conversation.forget()
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AnswerStream:
    """Iterates over text pieces once; `answer` is the whole when iteration ended."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._pieces = flow.run()

    def __iter__(self) -> Iterator[str]:
        """Yield text as it becomes available."""
        yield from self._pieces

    @property
    def has_begun(self) -> bool:
        """Tell whether any text was yielded; a fault after that leaves the answer incomplete."""
        return self._flow.has_begun

    @property
    def answer(self) -> Answer:
        """Return the finished answer; raises UsageError before the end."""
        if self._flow.answer is None:
            raise UsageError("the answer is complete only once its stream was read to the end")
        return self._flow.answer

    def close(self) -> None:
        """Stop early; what moved is logged as aborted."""
        self._pieces.close()


def load_engine(source: str, *, home: Home, expected: str | None = None, matrices: bool = True) -> Engine:
    """Load a model with its digests cached in the state folder; raises ModelError kinds, UnsupportedCacheError.

    Without `matrices` only its embeddings, norms and biases take memory (see `model.loading.load`).
    """
    cache = DigestCache(home.digests)
    return Engine(load(source, expected_weights_sha256=expected, digest_cache=cache, matrices=matrices))


def load_artefact(engine: Engine, *, home: Home) -> Artefact | None:
    """Return the artefact of calibrated codecs for this model, or None; raises ArtefactError for a malformed one."""
    return find_artefact(Held(home, engine.directory), engine.identity)


def _computes_with_matrices(policy: Policy) -> bool:
    """Tell whether the device may ever apply a large matrix: not where the cloud does; it cannot take over then."""
    return policy.mode is not TrustMode.HOMOMORPHIC or policy.homomorphic.linear == "device"


def _require_codec(
    rules: Policy, home: Home, engine: Engine, artefact: Artefact | None, recipient: str
) -> Chooser | None:
    """Refuse what the policy's bounds exclude; with codec "auto", return what chooses among the rest."""
    transfer = rules.transfer

    def loss_of(name: str) -> Loss | None:
        if name not in CALIBRATED:
            return LossFile(home).get(engine.identity.weights_sha256, name)
        found = find_certificate(Held(home, engine.directory), artefact, name) if artefact else None
        return found.loss if found else None

    if transfer.codec != AUTO:
        if transfer.codec in CALIBRATED and artefact is None:
            raise ArtefactError(
                f"codec {transfer.codec} needs an artefact of this model; run `splitinfer model calibrate SOURCE "
                "--corpus FILE` with public text, and give both sides the file"
            )
        require_codec(transfer, parameters=engine.parameters, loss=loss_of(transfer.codec))
        return None
    codecs = permitted(transfer, parameters=engine.parameters, loss_of=loss_of, artefact=artefact)
    file, mbit = SpeedFile(home), transfer.link_mbit_per_second

    def speeds() -> Speeds:
        found = file.get(recipient)
        return found if mbit is None else replace(found, link_bytes_per_second=mbit * 125_000)

    return Chooser(engine.layout, artefact, codecs, speeds, lambda measured: file.put(recipient, **measured))


def _remote(policy: Policy, home: Home) -> Remote | None:
    named = policy.remote
    if named is None:
        return None
    if named.name is not None:
        return load_remote(home, named.name)
    return Remote(named.url or "", named.identity_sha256 or "", Path(named.tls_ca) if named.tls_ca else None)


def _store(policy: Policy, home: Home) -> CacheStore | None:
    """Open the store where the policy has one; only `public-prefix` receives caches of public text alone."""
    if policy.mode is not TrustMode.PUBLIC_PREFIX or not policy.store.enabled:
        return None
    return open_store(home, max_bytes=policy.store.max_bytes)


def _conversation(policy: Policy, *, remember: bool) -> Conversation:
    """Make the session's memory; of no use where the device has no cache, and the cloud keeps none.

    Noised modes have none: every run is a release of its own, drawn anew and paid for, so nothing exact is at hand.
    """
    is_noised = MODES[policy.mode].is_noised
    is_of_use = not is_noised and (policy.mode not in _FORGETFUL or policy.session.keep)
    return Conversation(
        secrets.token_hex(16),
        keeps=remember and policy.session.keep,
        limit_bytes=LIMIT_BYTES if remember and is_of_use else 0,
    )


def _params(sampling: Mapping[str, object], policy: Policy) -> SamplingParams:
    asked = _asked({**_stated(policy), **sampling})
    if _is_stated(policy) and asked != _asked(_stated(policy)):
        raise UsageError(
            f"mode {policy.mode} takes its sampling from the policy, since a choice made beside the private text could "
            "give some of it away; write it in [sampling]"
        )
    return asked


def _is_stated(policy: Policy) -> bool:
    row = MODES[policy.mode]
    return row.is_noised and row.decode == "cloud"


def _stated(policy: Policy) -> dict[str, object]:
    return (policy.sampling or Sampling()).model_dump() if _is_stated(policy) else {}


def _asked(sampling: Mapping[str, object]) -> SamplingParams:
    values = dict(sampling)
    stop = values.pop("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop)  # type: ignore[arg-type]
    try:
        params = SamplingParams(**values, stop=stops)  # type: ignore[arg-type]
    except TypeError as error:
        known = ", ".join(SamplingParams.__slots__)
        raise UsageError(f"sampling takes {known}, and nothing else") from error
    require_sampling_params(params)
    return params
