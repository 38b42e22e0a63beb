"""`splitinfer serve` as a process: configuration file, TLS, a certified replica, limits, drain, a log without text."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from splitinfer.errors import TransportError
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device
from splitinfer.model.engine import Engine
from splitinfer.segments import note, question
from splitinfer.session import Session
from tests.integration.conftest import CANARY, CommandLine
from tests.support.certificates import write_certificate
from tests.support.processes import environment

ASK = ("--private-text", f"Who is {CANARY}?", "--max-new-tokens", "3")


@dataclass
class Replica:
    """A `serve` process: a replica without the identity key, behind TLS, one transfer at a time."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    device: Home
    policy: Path


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    base = tmp_path_factory.mktemp("replica")
    owner, device = Home(base / "owner"), Home(base / "device")
    home = Home(base / "replica")
    pin = _cli(owner, "keys", "create-identity")["identity_sha256"]
    key = _cli(home, "keys", "replica")["replica_key"]
    _cli(owner, "keys", "certify", key, "-o", str(home.path / "replica.cert"))
    allow_device(home, device.key("device").public_key().public_bytes_raw().hex())
    certificate, tls_key = write_certificate(base)
    config = base / "server.toml"
    config.write_text(
        f'port = 0\ntls_certificate = "{certificate}"\ntls_private_key = "{tls_key}"\n'
        "max_transfers = 1\ndrain_seconds = 20\n"
    )
    log = base / "log"
    command = [sys.executable, "-m", "splitinfer", "--home", str(home.path), "serve", "--config", str(config), "--json"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()) as process,
    ):
        line = process.stdout.readline() if process.stdout else ""
        assert line, log.read_text()
        ready = json.loads(line)
        assert ready["identity_sha256"] == pin
        assert ready["url"].startswith("https://127.0.0.1:")
        port = int(ready["url"].rsplit(":", 1)[1])
        policy = base / "policy.toml"
        policy.write_text(
            f'mode = "sealed-decode"\n[remote]\nurl = "https://127.0.0.1:{port}"\n'
            f'identity_sha256 = "{pin}"\ntls_ca = "{certificate}"\n'
        )
        try:
            yield Replica(process, port, log, device, policy)
        finally:
            process.terminate()
            process.wait(40)


def _cli(home: Home, *arguments: str) -> dict[str, str]:
    """Run a quick command in this process, outside of any test's capture."""
    import contextlib
    import io

    from splitinfer.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["--home", str(home.path), *arguments, "--json"]) == 0
    facts: dict[str, str] = json.loads(out.getvalue())
    return facts


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prot = 8471\n", "prot"),
        ("[server]\nport = 1\nworkers = 8\n", "workers"),
        ('host = "192.0.2.7"\n', "TLS"),
        ('tls_certificate = "a.pem"\n', "tls_private_key"),
        ("max_transfers = 0\n", "max_transfers"),
        ("port = \n", "TOML"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(text: str, word: str, command: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    assert command("serve", "--config", path).is_refusal("usage", 2, word)


def test_missing_settings_file_is_refused(command: CommandLine, tmp_path: Path) -> None:
    assert command("serve", "--config", tmp_path / "none.toml").is_refusal("usage", 2, "settings file")


@pytest.mark.parametrize("host", ["::", "192.0.2.7", "cloud.example"])
def test_public_address_without_tls_is_refused(
    host: str, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "cloud")
    home.key("identity")
    monkeypatch.setattr("server.run._Server.run", lambda *_, **__: None)
    assert command("serve", "--host", host, "--port", 0, home=home).is_refusal("usage", 2, "TLS")


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_port_that_is_none_is_refused(
    port: int, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "cloud")
    home.key("identity")
    # A door that opens all the same would serve for ever.
    monkeypatch.setattr("server.run._Server.run", lambda *_, **__: None)
    assert command("serve", f"--port={port}", home=home).is_refusal("usage", 2, "port")


def test_port_in_use_is_refused(command: CommandLine, tmp_path: Path) -> None:
    home = Home(tmp_path / "cloud")
    home.key("identity")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("serve", "--port", port, home=home).is_refusal("usage", 2, str(port))


def test_pairing_works_on_loopback_only(command: CommandLine, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    config = tmp_path / "server.toml"
    config.write_text(f'host = "192.0.2.7"\ntls_certificate = "{certificate}"\ntls_private_key = "{key}"\n')
    ran = command("serve", "--config", config, "--pair", tmp_path / "device", home=tmp_path / "cloud")
    assert ran.is_refusal("usage", 2, "loopback")
    assert not (tmp_path / "device" / "remotes").exists()


# --- a running replica ------------------------------------------------------------------------------------------------


def test_run_over_tls_with_an_inline_remote_and_its_ca(replica: Replica, command: CommandLine, engine: Engine) -> None:
    ran = command("run", "--policy", replica.policy, *ASK, "--json", home=replica.device, engine=engine)
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)
    assert printed["mode"] == "sealed-decode"
    assert printed["receipt"]["body"]["events"]


def test_tls_without_its_ca_is_refused_before_anything_is_sent(
    replica: Replica, command: CommandLine, engine: Engine, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    lines = replica.policy.read_text().splitlines()
    policy.write_text("\n".join(line for line in lines if not line.startswith("tls_ca")))
    ran = command("run", "--policy", policy, *ASK, home=replica.device, engine=engine)
    assert ran.is_refusal("transport", 5, "tls_ca")


def test_who_sends_half_a_head_keeps_nobody_out(replica: Replica, command: CommandLine, engine: Engine) -> None:
    with half_a_request(replica.port), half_a_request(replica.port):
        ran = command("run", "--policy", replica.policy, *ASK, home=replica.device, engine=engine)
    assert ran.code == 0, ran.err


class half_a_request:  # noqa: N801
    """Begin a request body and do not end its head."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
        head = "POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        self._connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b"\0")

    def __enter__(self) -> None:
        import time

        time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def test_log_of_the_server_holds_no_text_and_no_address(replica: Replica) -> None:
    text = replica.log.read_text()
    assert 'route="POST /v1/decode" status=200 outcome=complete' in text
    assert CANARY not in text
    assert "127.0.0.1" not in text
    assert "Traceback" not in text


def test_sigterm_lets_a_streaming_reply_finish_and_refuses_new_ones(replica: Replica, engine: Engine) -> None:
    """Stands last: the replica is gone afterwards."""
    hot = {"max_new_tokens": 250, "temperature": 8.0, "seed": 1}
    with Session.open(replica.policy, home=replica.device, engine=engine) as session:
        stream = session.stream([note("a note"), question("which?")], **hot)
        pieces = iter(stream)
        next(pieces)
        replica.process.send_signal(signal.SIGTERM)
        with (
            Session.open(replica.policy, home=replica.device, engine=engine) as other,
            pytest.raises(TransportError),
        ):
            other.run([question("and I?")], max_new_tokens=2)
        for _ in pieces:
            pass
        assert len(stream.answer.token_ids) > 20
        assert stream.answer.receipt is not None
    assert replica.process.wait(30) == 0
