"""A cache leaves while it grows, over HTTP: rows early, the rest after the end, and what breaks leaves no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitinfer import codec, schedule
from splitinfer.answer import Answer
from splitinfer.cache.early_rows import EarlyRows
from splitinfer.cache.growing import GrowingCache
from splitinfer.cloud.parked import Parking
from splitinfer.errors import ModelError, TransportError
from splitinfer.handoff import Label
from splitinfer.model.engine import Engine
from splitinfer.segments import question
from splitinfer.session import Session
from tests.support.engines import engine_of
from tests.support.growing import PATIENCE_SECONDS, Turnstile
from tests.support.http_exchange import Served, served
from tests.support.memory_clouds import Paired, policy_of

PROMPT = [question("which lamp is the cheapest of all? " * 34)]
MODES = ("sealed-prefill", "sealed-decode")


@pytest.fixture(autouse=True)
def patient_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine too, a device begins to send at once."""
    monkeypatch.setattr("splitinfer.ways.cloud_decode.PAUSE_SECONDS", float("inf"))


class Watched:
    """Sinks of caches that note which slab they wait for; `at_slab` is called with its number, from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.asked = threading.Condition()
        self.count = 0
        self.at_slab: Callable[[int], None] = lambda _: None
        make, watch = codec.sink, self

        class Sink:
            def __init__(self, *layout: Any, **counts: Any) -> None:
                self._sink = make(*layout, **counts)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._sink, name)

            def slab(self) -> memoryview:
                watch.waits_for_slab()
                return self._sink.slab()

        monkeypatch.setattr(codec, "sink", Sink)

    def waits_for_slab(self) -> None:
        with self.asked:
            self.log.append(f"slab {self.count}")
            number, self.count = self.count, self.count + 1
            self.asked.notify_all()
        self.at_slab(number)

    def wait_for(self, number: int) -> None:
        """Wait until everything before slab `number` has arrived."""
        with self.asked:
            assert self.asked.wait_for(lambda: self.count > number, PATIENCE_SECONDS)


class Sides:
    """A device and a cloud over HTTP with an engine each; `sender` is the one whose model prefills."""

    def __init__(self, base: Path, mode: str) -> None:
        self.mode, self.pair = mode, Paired.at(base)
        self.device, self.cloud = engine_of("llama"), engine_of("llama")
        self.sender = self.cloud if mode == "sealed-prefill" else self.device
        self.service = self.pair.service(self.cloud)

    @contextmanager
    def served(self) -> Iterator[Served]:
        with served(self.service) as door:
            self.pair.point_at(door.url)
            yield door

    def run(self, **options: Any) -> Answer:
        policy = policy_of(self.mode)
        with Session.open(policy, home=self.pair.device, engine=self.device, **options) as session:
            return session.run(PROMPT, max_new_tokens=3)

    def embedding(self) -> Any:
        return self.sender._loaded.model.model.embed_tokens

    def early_slabs(self) -> int:
        """Count the slabs that leave before the padding."""
        segments = [replace(segment, label=Label.PRIVATE) for segment in PROMPT]
        tokens = len(self.device.tokenize(segments).token_ids) - 1
        padded = schedule.pad_tokens(tokens)
        assert padded > tokens > 1088
        rule = EarlyRows.of(self.device.layout, padded_tokens=padded, steps=[(0, 512)])
        needed = [rule.work_needed(spec) for spec in schedule.slabs(self.device.layout, padded)]
        return sum(work is not None and work < tokens * len(self.device.layout.layers) for work in needed)

    def outcome(self) -> tuple[str, str]:
        return self.pair.last["status"], self.pair.last.get("code", "")


@contextmanager
def in_thread(run: Callable[[], Answer]) -> Iterator[Future[Answer]]:
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(run)


def local_ids(base: Path, engine: Engine) -> tuple[int, ...]:
    with Session.open("local", home=base, engine=engine) as session:
        return session.run(PROMPT, max_new_tokens=3).token_ids


@pytest.mark.parametrize("mode", MODES)
def test_slabs_arrive_before_the_last_step_and_held_ones_after_the_padding(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = Sides(tmp_path / "pair", mode)
    expected = local_ids(tmp_path / "local", engine_of("llama"))
    watch, early = Watched(monkeypatch), sides.early_slabs()
    # Three steps of the prompt, then its padding.
    gate = Turnstile(sides.embedding())
    gate.open(2)
    with sides.served(), in_thread(sides.run) as running:
        watch.wait_for(3)
        assert gate.arrived <= 3
        gate.open(3)
        gate.wait_for(4)
        watch.wait_for(early - 1)
        watch.log.append("padding")
        gate.open()
        answer = running.result(PATIENCE_SECONDS)
    # What waits for the slab after the first held one has received that.
    assert watch.log.index("padding") < watch.log.index(f"slab {early + 1}")
    assert answer.token_ids == expected
    assert answer.exact
    assert answer.receipt is not None
    events = {event.event: event.count for event in answer.receipt.body.events}
    assert list(events) == ["received", "opened", "prefilled" if mode == "sealed-prefill" else "decoded", "erased"]


def test_client_that_leaves_is_waited_for_and_giving_it_up_stops_the_prefill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides, watch = Sides(tmp_path, "sealed-prefill"), Watched(monkeypatch)
    parked, started = threading.Event(), list[GrowingCache]()
    start, rest = Engine.start_prefill, Parking._rest

    def noting(engine: Engine, *args: Any, **keywords: Any) -> GrowingCache:
        started.append(start(engine, *args, **keywords))
        return started[-1]

    def rest_and_tell(parking: Parking, *args: Any) -> None:
        rest(parking, *args)
        parked.set()

    monkeypatch.setattr(Engine, "start_prefill", noting)
    monkeypatch.setattr(Parking, "_rest", rest_and_tell)
    gate = Turnstile(sides.embedding())
    gate.open(2)

    def leave(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with sides.served() as door, ThreadPoolExecutor(1) as executor:
        watch.at_slab = leave
        with pytest.raises(KeyboardInterrupt):
            sides.run()
        assert sides.outcome() == ("aborted", "interrupted")
        gate.open(3)
        assert parked.wait(PATIENCE_SECONDS)
        # No layer stores anything more before the gate opens.
        gate.wait_for(4)
        published = list(started[0]._tensors.values())
        assert published
        assert all(tensor.any() for tensor in published)
        giving_up = executor.submit(sides.service.close)
        with started[0]._changed:
            assert started[0]._changed.wait_for(lambda: started[0]._is_stopping, PATIENCE_SECONDS)
        gate.open()
        giving_up.result(PATIENCE_SECONDS)
        # The step at the gate ended at its first layer.
        assert gate.arrived <= 4
        assert not any(tensor.any() for tensor in published)
        assert not sides.service._computing.lock.locked()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefill")]
        watch.at_slab = lambda _: None
        assert sides.run().receipt is not None
    assert "outcome=aborted" in door.log.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_model_that_fails_in_the_middle_breaks_the_stream_off(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides, watch = Sides(tmp_path, mode), Watched(monkeypatch)
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            watch.wait_for(3)
            raise RuntimeError("canary")

    hook = sides.embedding().register_forward_pre_hook(fail)
    with sides.served() as door:
        with pytest.raises(TransportError if mode == "sealed-prefill" else ModelError) as caught:
            sides.run()
        assert "canary" not in str(caught.value)
        hook.remove()
        broken = door.log.getvalue()
        is_down = mode == "sealed-prefill"
        assert sides.outcome() == (("unreceipted", "transport") if is_down else ("failed", "model"))
        assert sides.device.decoded_tokens == sides.cloud.decoded_tokens == 0
        assert sides.run().receipt is not None
    assert ("reply broken off, code model" in broken) is is_down
    assert "canary" not in door.log.getvalue()


def test_ctrl_c_during_the_upload_is_a_logged_abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides, watch = Sides(tmp_path, "sealed-decode"), Watched(monkeypatch)

    def interrupt(done: int, total: int) -> None:
        if done == total and watch.count:
            raise KeyboardInterrupt

    gate = Turnstile(sides.embedding())
    gate.open(2)
    with sides.served(), ThreadPoolExecutor(1) as executor:
        # The last step runs once something has arrived.
        executor.submit(lambda: (watch.wait_for(3), gate.open()))
        with pytest.raises(KeyboardInterrupt):
            sides.run(on_prefill=interrupt)
        assert sides.outcome() == ("aborted", "interrupted")
        assert sides.pair.last["bytes_sent"] > 0
        assert sides.cloud.decoded_tokens == 0
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefill")]
        assert sides.run().receipt is not None
