"""What crosses in a session of rounds, byte for byte, through a real server: counted to the byte, and nothing private.

Looked for: text, runs of token ids, rows of the prompt's cache, the inputs of every large matrix of every step (what
`masked` masks), every query and share of attention (what `homomorphic` encrypts), and the session's secret key.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from splitinfer.answer import Answer
from splitinfer.egress.verification import verify
from splitinfer.homomorphic import attention, seal
from splitinfer.homomorphic.keys import SessionKeys
from splitinfer.joint.offline import prepare_pool
from splitinfer.model.engine import Engine
from splitinfer.model.layerwise import LayerwiseModel
from splitinfer.segments import note, public, question
from splitinfer.session import Session
from tests.support.http_exchange import served
from tests.support.memory_clouds import Paired
from tests.support.recording_proxy import Capture, RecordingProxy
from tests.support.rounds import MASKED, RoundsCloud, homomorphic
from tests.support.scanner import Scanner
from tests.support.wire import Message
from trust_models.policy import Policy

PUBLIC_WORDS, PRIVATE_WORDS = ("Xylographica", "Quaggamuster"), ("Zwetschgenknoedel", "Brummkreisel77")
PROMPT = (public(" ".join(PUBLIC_WORDS)), note(PRIVATE_WORDS[0]), question(PRIVATE_WORDS[1]))
POLICIES = {
    "homomorphic": homomorphic(),
    "homomorphic, public prefix": homomorphic(public="plaintext"),
    "masked": MASKED,
}
WINDOW_BYTES = 32


@dataclass
class Seen:
    """What the device held in the clear in one run, and what crossed."""

    captures: list[Capture] = field(default_factory=list)
    answer: Answer | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    activations: list[np.ndarray] = field(default_factory=list)
    secret_keys: list[bytes] = field(default_factory=list)

    @property
    def session(self) -> Capture:
        (found,) = [capture for capture in self.captures if sent(capture).route == "POST /v1/session"]
        return found

    def scanner(self, engine: Engine) -> Scanner:
        made = Scanner()
        made.add_words(PRIVATE_WORDS, what="private text")
        made.add_words(PUBLIC_WORDS, what="public text")
        token_ids = engine.tokenize(PROMPT).token_ids
        made.add_tokens(token_ids)
        made.add_cache(engine.prefill(token_ids, steps=[(0, len(token_ids))]))
        for form in ("<f4", "<f8"):
            add_windows(made, f"activations {form}", [rows.astype(form).tobytes() for rows in self.activations])
        add_windows(made, "secret key", self.secret_keys)
        return made


def add_windows(scanner: Scanner, kind: str, blobs: Sequence[bytes]) -> None:
    """Add what is not constant of every blob, in windows."""
    for blob in blobs:
        for at in range(0, len(blob) - WINDOW_BYTES + 1, WINDOW_BYTES):
            if len(set(blob[at : at + WINDOW_BYTES])) > 8:
                scanner._add(kind, blob[at : at + WINDOW_BYTES])


def sent(capture: Capture) -> Message:
    return Message.parse(bytes(capture.sent))


def received(capture: Capture) -> Message:
    return Message.parse(bytes(capture.received))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny: Engine, tiny_on_cloud: Engine
) -> Iterator[dict[str, tuple[Seen, Paired]]]:
    """Every policy once, through the proxy."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLITINFER_ANCHORS", str(tmp_path_factory.mktemp("anchors")))
        for name, policy in POLICIES.items():
            pair = Paired.at(tmp_path_factory.mktemp("pair"))
            found[name] = (run(pair, policy, tiny, tiny_on_cloud), pair)
        yield found


def run(pair: Paired, policy: Policy, engine: Engine, on_cloud: Engine) -> Seen:
    seen = Seen()
    if policy is MASKED:
        prepare_pool(pair.device, engine, tokens=8, max_bytes=1 << 24)
    with (
        served(RoundsCloud(pair, on_cloud).service()) as door,
        RecordingProxy(door.port) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        pair.point_at(proxy.url)
        watch(patch, seen)
        with Session.open(policy, home=pair.device, engine=engine) as session:
            seen.answer = session.run(PROMPT, max_new_tokens=2)
        seen.captures = proxy.take()
    seen.outcome = pair.last
    return seen


def watch(patch: pytest.MonkeyPatch, seen: Seen) -> None:
    """Note the inputs of matrices, what is packed for encryption, and secret keys as SEAL holds them."""
    step = LayerwiseModel.step

    def watched(self: LayerwiseModel, *at: int, attend: Any, linear: Callable[..., np.ndarray]) -> np.ndarray:
        def noted(layer: int, name: str, vector: np.ndarray) -> np.ndarray:
            seen.activations.append(np.array(vector))
            return linear(layer, name, vector)

        return step(self, *at, attend=attend, linear=noted)

    patch.setattr(LayerwiseModel, "step", watched)
    for name in ("pack_query", "pack_probabilities"):
        pack = getattr(attention, name)

        def packed(plan: Any, rows: np.ndarray, pack: Any = pack) -> np.ndarray:
            seen.activations.append(np.array(rows))
            return pack(plan, rows)

        patch.setattr(attention, name, packed)
    made = SessionKeys.__init__

    def keyed(self: SessionKeys, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        stored = seal.to_bytes(self._generator.secret_key())
        seen.secret_keys += [stored, seal._stored(stored, 1 << 26)]

    patch.setattr(SessionKeys, "__init__", keyed)


@pytest.mark.parametrize("name", POLICIES)
def test_the_log_counts_exactly_the_bytes_of_a_session(runs: dict[str, tuple[Seen, Paired]], name: str) -> None:
    seen, pair = runs[name]
    keyset, session = seen.captures
    up, down = sent(session).unchunked, received(session).unchunked
    logged = [(call["route"], call["bytes_sent"], call["bytes_received"]) for call in seen.outcome["calls"]]
    assert seen.outcome["status"] == "completed"
    assert logged == [
        ("GET /v1/keyset", len(sent(keyset).body), len(received(keyset).body)),
        ("POST /v1/session", len(up), len(down)),
    ]
    assert (seen.answer.egress.bytes_sent, seen.answer.egress.bytes_received) == (
        seen.outcome["bytes_sent"],
        seen.outcome["bytes_received"],
    )
    assert len(up) > 10_000
    verify(pair.device.audit, pair.device.key("checkpoint").public_key())


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_private_is_in_a_sessions_bytes(runs: dict[str, tuple[Seen, Paired]], tiny: Engine, name: str) -> None:
    seen, pair = runs[name]
    scanner = seen.scanner(tiny)
    assert {"activations <f4", "activations <f8"} <= scanner.kinds
    assert ("secret key" in scanner.kinds) == name.startswith("homomorphic")
    for capture in seen.captures:
        assert scanner.find(capture.sent) == set()
        assert scanner.find(capture.received) == set()
    assert scanner.find(sent(seen.session).unchunked) == set(), "nor where the transfer coding cuts it"
    assert scanner.find_in_files(pair.device.audit) == {}


def test_what_is_looked_for_is_found_where_it_is(runs: dict[str, tuple[Seen, Paired]], tiny: Engine) -> None:
    """The same needles in what the device holds: every activation, and a secret key in either form."""
    seen, _ = runs["homomorphic"]
    scanner = seen.scanner(tiny)
    assert "activations <f8" in scanner.find(b"".join(rows.astype("<f8").tobytes() for rows in seen.activations))
    assert "activations <f4" in scanner.find(b"".join(rows.astype("<f4").tobytes() for rows in seen.activations))
    for stored in seen.secret_keys:
        assert scanner.find(b"x" + stored) == {"secret key"}
    token_ids = tiny.tokenize(PROMPT).token_ids
    assert "tokens u32 little" in scanner.find(struct.pack(f"<{len(token_ids)}I", *token_ids))
