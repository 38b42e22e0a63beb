"""What the integration tests share: one loaded model, one real cloud process, the command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from splitinfer.cli.main import main
from splitinfer.handoff import Segment, Transport
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.segments import note, public, question
from tests.support import tiny_models
from tests.support.curious_clouds import CuriousCloud, inject_same_noise
from tests.support.memory_clouds import Paired
from tests.support.processes import CloudProcess, cloud_process

CANARY = "Zanzibar-7431"


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    def is_refusal(self, code: str, exit_code: int, *words: str) -> bool:
        """Check one sentence with a code on stderr, the exit code, no traceback, no private text; always True."""
        lines = [line for line in self.err.splitlines() if line.startswith("error[")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith(f"error[{code}]: "), self.err
        assert self.code == exit_code, (self.code, self.err)
        assert len(lines[0]) > len(f"error[{code}]: ") + 10
        for word in words:
            assert word in lines[0], (word, lines[0])
        assert "Traceback" not in self.err + self.out
        assert CANARY not in self.err + self.out
        return True


CommandLine = Callable[..., Ran]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The embedded model on the device's side."""
    return Engine(load("embedded"))


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    """A real cloud process with the embedded model, paired with `device`."""
    with cloud_process(tmp_path_factory.mktemp("real")) as process:
        yield process


@pytest.fixture(scope="session")
def device(cloud: CloudProcess) -> Home:
    """The state folder that is paired with the real cloud."""
    return Home(cloud.home.parent / "device")


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random Llama."""
    return tiny_models.build(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny(tiny_directory: Path) -> Engine:
    """That tiny model on the device's side."""
    return Engine(load(str(tiny_directory)))


@pytest.fixture(scope="session")
def tiny_on_cloud(tiny_directory: Path) -> Engine:
    """The same tiny model, loaded a second time."""
    return Engine(load(str(tiny_directory)))


@pytest.fixture
def pair(tmp_path: Path) -> Paired:
    """A fresh device and a fresh cloud folder that know each other."""
    return Paired.at(tmp_path / "pair")


@pytest.fixture
def curious(pair: Paired, tiny_on_cloud: Engine) -> CuriousCloud:
    """A cloud of that pair that keeps all that it can read."""
    return pair.service(tiny_on_cloud, made=CuriousCloud)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in every run of a test."""
    inject_same_noise(monkeypatch)


@pytest.fixture
def segments() -> list[Segment]:
    """A short public document, a private note, a private question."""
    return [public("Price list: lamp 5, kettle 7."), note(f"Ticket of {CANARY}"), question("Who wrote the ticket?")]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Engine
) -> CommandLine:
    """Run a command line in this process: `command(*argv, home=..., engine=None, transport=None)`.

    `run` uses the tiny model that is loaded already, unless engine="real"; `transport` stands in for HTTP.
    """

    def run(
        *argv: object, home: Path | Home | None = None, engine: Engine | str = tiny, transport: Transport | None = None
    ) -> Ran:
        folder = home.path if isinstance(home, Home) else home or tmp_path / "home"
        with monkeypatch.context() as patch:
            if not isinstance(engine, str):
                patch.setattr("splitinfer.session.load_engine", lambda *_, **__: engine)
            if transport is not None:
                patch.setattr("splitinfer.session.HttpTransport", lambda *_, **__: transport)
            code = main(["--home", str(folder), *map(str, argv)])
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run
