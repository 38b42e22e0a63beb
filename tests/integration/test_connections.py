"""Nothing but the transport connects anywhere, nothing is written outside the state folder, no process is started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

from splitinfer.cli.main import main
from splitinfer.egress.verification import read_records, verify
from splitinfer.home import Home
from tests.support.memory_clouds import REMOTE_MODES
from tests.support.policy_files import named_or_written
from tests.support.processes import CloudProcess, cloud_process, environment

NETWORK = {f"socket.{name}" for name in ("connect", "sendto", "sendmsg", "bind", "getaddrinfo", "getnameinfo")}
NETWORK |= {"socket.gethostbyname", "socket.gethostbyaddr", "http.client.connect", "urllib.Request", "ftplib.connect"}
PROCESSES = {"subprocess.Popen", "pty.spawn"}
PROCESSES |= {f"os.{name}" for name in ("system", "exec", "posix_spawn", "spawn", "fork", "forkpty")}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = {"os.rename": 1, "os.mkdir": 0, "os.symlink": 1, "os.link": 1, "os.truncate": 0}
ALLOWED_CALLER = "splitinfer.transport"


@dataclass
class Watch:
    """What the interpreter did while it was watched: connections of the transport, and everything forbidden."""

    home: Path
    connected: list[object] = field(default_factory=list)
    resolved: list[object] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)

    def saw(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in NETWORK:
            self._saw_network(event, arguments)
        elif event in PROCESSES:
            self.forbidden.append(event)
        elif event == "open" and int(str(arguments[2] or 0)) & WRITING:
            self._saw_write(event, arguments[0])
        elif event in CHANGES:
            self._saw_write(event, arguments[CHANGES[event]])

    def _saw_network(self, event: str, arguments: tuple[object, ...]) -> None:
        if not _called_by_transport(sys._getframe(1)):
            self.forbidden.append(event)
        elif event == "socket.connect":
            self.connected.append(arguments[1])
        else:
            self.resolved.append(arguments[1] if event == "http.client.connect" else arguments[0])

    def _saw_write(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        if name == os.devnull or "__pycache__" in name or Path(name).absolute().is_relative_to(self.home):
            return
        self.forbidden.append(f"{event} {name}")


def _called_by_transport(frame: FrameType | None) -> bool:
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == ALLOWED_CALLER or name.startswith(f"{ALLOWED_CALLER}."):
            return True
        frame = frame.f_back
    return False


# A hook cannot be removed, so there is one, which looks only while something is watched.
_WATCHING: list[Watch] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    for watch in _WATCHING:
        watch.saw(event, arguments)


sys.addaudithook(_hook)


@contextmanager
def watched(home: Path) -> Iterator[Watch]:
    watch = Watch(home)
    _WATCHING.append(watch)
    try:
        yield watch
    finally:
        _WATCHING.remove(watch)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    with cloud_process(tmp_path_factory.mktemp("connections")) as process:
        yield process


@pytest.fixture(scope="module")
def device(cloud: CloudProcess) -> Home:
    return Home(cloud.home.parent / "device")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    files = tmp_path_factory.mktemp("prompt")
    for name, text in (("shown", "Price list: Belsa lamp $19.90"), ("hidden", "Phone: 415-203-7786")):
        (files / name).write_text(text)
    chosen = ["--public", str(files / "shown"), "--private", str(files / "hidden")]
    return ["run", *chosen, "--private-text", "What is the phone number?"]


def command_of(device: Home, arguments: list[str], mode: str, *, max_new_tokens: int = 3) -> list[str]:
    """Return the command line; a policy file is written before anything is watched."""
    policy = named_or_written(mode, Path(arguments[2]).parent, max_new_tokens=max_new_tokens)
    asked = [*arguments, "--max-new-tokens", str(max_new_tokens), "--policy", policy]
    return ["--home", str(device.path), *asked, "--json"]


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_only_the_transport_connects_and_only_to_the_remote(
    cloud: CloudProcess, device: Home, arguments: list[str], mode: str
) -> None:
    argv = command_of(device, arguments, mode)
    with watched(device.path) as watch:
        assert main(argv) == 0
    assert watch.forbidden == []
    assert watch.connected == [("127.0.0.1", cloud.port)] * 2, "the keyset, then the transfer"
    assert set(watch.resolved) <= {"127.0.0.1"}


def test_mode_local_connects_nowhere(device: Home, arguments: list[str]) -> None:
    argv = command_of(device, arguments, "local")
    with watched(device.path) as watch:
        assert main(argv) == 0
    assert (watch.forbidden, watch.connected, watch.resolved) == ([], [], [])


@pytest.mark.parametrize("mode", ["local", *REMOTE_MODES])
def test_a_denied_or_mistaken_request_connects_nowhere(
    cloud: CloudProcess, device: Home, arguments: list[str], mode: str
) -> None:
    argv = command_of(device, arguments, mode, max_new_tokens=100_000)
    with watched(device.path) as watch:
        assert main(argv) == 7
    assert (watch.forbidden, watch.connected, watch.resolved) == ([], [], [])


def test_the_watch_sees_what_is_forbidden(cloud: CloudProcess, device: Home, tmp_path: Path) -> None:
    with watched(device.path) as watch:
        socket.create_connection(("localhost", cloud.port)).close()
        subprocess.run(["true"], check=True)
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        (tmp_path / "leak").write_text("x")
        (tmp_path / "folder").mkdir()
        (device.path / "inside").write_text("x")
    (device.path / "inside").unlink()
    seen = {entry.split(" ")[0] for entry in watch.forbidden}
    assert {"socket.getaddrinfo", "socket.connect", "subprocess.Popen", "os.posix_spawn", "open", "os.mkdir"} <= seen
    assert not any("inside" in entry for entry in watch.forbidden)


# --- an empty network namespace -------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys
from splitinfer.cli.main import main
home, modes, arguments = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
codes = {}
for mode in modes:
    sys.stdout = open(os.devnull, "w")
    codes[mode] = main(["--home", home, *arguments, "--policy", mode, "--no-store"])
    sys.stdout.close()
print(json.dumps(codes), file=sys.__stdout__)
"""


def _unshare() -> list[str] | None:
    """Return the command that gives a process an empty network namespace, or None where this machine has none."""
    if shutil.which("unshare") is None:
        return None
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return None


@pytest.mark.skipif(_unshare() is None, reason="no empty network namespace here: `unshare -rn` is missing or forbidden")
def test_without_a_network_local_runs_and_remote_modes_fail_and_say_so(
    cloud: CloudProcess, device: Home, arguments: list[str]
) -> None:
    size = len(list(read_records(device.audit)))
    modes = ("local", *REMOTE_MODES)
    files = Path(arguments[2]).parent
    policies = {named_or_written(mode, files, max_new_tokens=3): mode for mode in modes}
    asked = [*arguments, "--max-new-tokens", "3"]
    command = [*(_unshare() or []), sys.executable, "-c", SCRIPT, str(device.path), ",".join(policies), *asked]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    codes = {policies[name]: code for name, code in json.loads(done.stdout).items()}
    assert codes == {"local": 0, **dict.fromkeys(REMOTE_MODES, 5)}
    assert done.stderr.count("error[transport]: ") == len(REMOTE_MODES)
    records = [record for record in list(read_records(device.audit))[size:] if record["type"] != "noise"]
    assert [record["type"] for record in records] == ["local", *["intent", "outcome"] * len(REMOTE_MODES)]
    outcomes = [record for record in records if record["type"] == "outcome"]
    assert [(one["status"], one["code"], one["bytes_sent"]) for one in outcomes] == [("failed", "transport", 0)] * len(
        REMOTE_MODES
    )
    verify(device.audit, device.key("checkpoint").public_key())
