"""Two tenants of one cloud: public texts -> how long the second one waits, by whether the first one sent them before.

Evaluation. Both are devices with keys of their own and sessions under `public-prefix`, on the product's cloud in this
process. The attacker watches a clock on its own connection and nothing else. The control is the same cloud without
the secret of each device (`targets.shared_prefixes`): there the attack must succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from splitinfer.cloud import CloudService
from splitinfer.evaluation.attacks.prefix_timing import TimingResult, probe
from splitinfer.evaluation.attacks.traffic import Transcript
from splitinfer.evaluation.prompts import EvaluationPrompt, make_prompts
from splitinfer.evaluation.scratch import Scratch
from splitinfer.evaluation.seats import WatchedCloud
from splitinfer.evaluation.targets.shared_prefixes import SharedCloud
from splitinfer.handoff import Cloud
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.session import Session
from splitinfer.transport.memory import MemoryTransport
from trust_models.policy import Policy

__all__ = ["Tenants", "time_prefixes"]

_POLICY = {"mode": "public-prefix", "remote": {"name": "default"}, "store": {"enabled": False}}


class Tenants:
    """A victim and an attacker, devices of one cloud; made by `open`."""

    def __init__(self, victim: Session, attacker: Session, watched: WatchedCloud) -> None:
        self._victim, self._attacker, self._watched = victim, attacker, watched

    @classmethod
    @contextmanager
    def open(cls, engine: Engine, *, is_isolating: bool = True) -> Iterator[Tenants]:
        """Set the cloud and both devices up in scratch folders; without isolation the prefix cache is everybody's."""
        with Scratch.open() as scratch, ExitStack() as stack:
            cloud = scratch.service(CloudService if is_isolating else SharedCloud, engine)
            stack.callback(cloud.close)
            watched = WatchedCloud(cloud)
            victim = stack.enter_context(_session(scratch.device("victim"), engine, cloud))
            attacker = stack.enter_context(_session(scratch.device("attacker"), engine, watched))
            yield cls(victim, attacker, watched)

    def send(self, prompt: EvaluationPrompt) -> None:
        """Let the victim ask about a public text."""
        self._victim.run(prompt.segments, max_new_tokens=1)

    def seconds(self, prompt: EvaluationPrompt) -> float:
        """Let the attacker ask about the same public text; return how long the cloud took to send its cache."""
        self._watched.forget()
        self._attacker.run(prompt.segments, max_new_tokens=1)
        return _waited(self._watched.transcript)


def time_prefixes(
    engine: Engine,
    *,
    texts: int,
    tokens: int,
    seed: int,
    is_isolating: bool = True,
    progress: Callable[[int], None] | None = None,
) -> TimingResult:
    """Time public texts of about `tokens` tokens, half of which the victim sent before."""
    prompts = make_prompts(texts, seed=seed, document_rows=_rows(engine, tokens, seed=seed))
    with Tenants.open(engine, is_isolating=is_isolating) as tenants:

        def victim(place: Sequence[int]) -> None:
            tenants.send(prompts[place[0]])

        def attacker(place: Sequence[int]) -> float:
            return tenants.seconds(prompts[place[0]])

        places = [(place,) for place in range(texts)]
        return probe(victim=victim, attacker_seconds=attacker, prefixes=places, seed=seed, progress=progress)


def _rows(engine: Engine, tokens: int, *, seed: int) -> int:
    """Return how many rows of a document make so many public tokens."""
    rows = 1
    while engine.tokenize(make_prompts(1, seed=seed, document_rows=rows)[0].segments).leading_public_tokens < tokens:
        rows += 1
    return rows


def _waited(transcript: Transcript) -> float:
    """Return the seconds from the last byte of the largest request to the last one of its reply."""
    asked = max((x for x in transcript.messages if x.direction == "up"), key=lambda message: message.size_bytes)
    return transcript.messages[-1].at_seconds - asked.at_seconds


def _session(device: Home, engine: Engine, door: Cloud) -> Session:
    policy = Policy.model_validate(_POLICY)
    transport = MemoryTransport(door)
    # Neither the device's store nor its memory answers: every question goes to the cloud.
    return Session.open(policy, home=device, engine=engine, transport=transport, use_store=False, remember=False)
