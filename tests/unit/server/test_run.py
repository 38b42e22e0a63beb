"""A served process: it says where it listens, drains on a signal, cuts off what is left, and speaks TLS 1.3."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from server.run import serve
from server.settings import ServerSettings, make_settings
from splitinfer.errors import TransportError, UsageError
from splitinfer.handoff import Route
from splitinfer.transport.http import HttpTransport
from tests.support.certificates import write_certificate
from tests.support.echo_cloud import KEYSET, EchoCloud, command
from tests.support.http_exchange import read_all, released, served_by_process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_leaves_at_the_first_signal_with_exit_0(tmp_path: Path, number: signal.Signals) -> None:
    with served_by_process(tmp_path / "log") as (process, port):
        assert read_all(HttpTransport(f"http://127.0.0.1:{port}").exchange(released(route=Route.KEYSET))) == KEYSET
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


def test_running_transfer_finishes_within_the_drain(tmp_path: Path) -> None:
    with served_by_process(tmp_path / "log", drain_seconds=20) as (process, port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            body = command("make 3000000")
            head = f"POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
            connection.sendall(head.encode() + body)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(TransportError):
                HttpTransport(f"http://127.0.0.1:{port}").exchange(released(route=Route.KEYSET))
            connection.sendall(b"x")
            answer = bytearray()
            while piece := connection.recv(1 << 20):
                answer += piece
        assert answer.endswith(b"\x5a" * 3_000_000)
        assert process.wait(10) == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_transfer_that_outlives_the_drain_is_cut_off_and_closed(tmp_path: Path, scheme: str) -> None:
    certificate, key = write_certificate(tmp_path)
    tls = {"tls_certificate": certificate, "tls_private_key": key} if scheme == "https" else {}
    with served_by_process(tmp_path / "log", drain_seconds=0.5, **tls) as (process, port):
        transport = HttpTransport(f"{scheme}://127.0.0.1:{port}", tls_ca=certificate)
        reply = transport.exchange(released(command("make 500000000")))
        process.send_signal(signal.SIGTERM)
        assert process.wait(4) == 0
        with pytest.raises(TransportError):
            read_all(reply)
    assert "outcome=aborted" in (tmp_path / "log").read_text()


def test_second_signal_cuts_off_at_once(tmp_path: Path) -> None:
    with served_by_process(tmp_path / "log", drain_seconds=60) as (process, port):
        reply = HttpTransport(f"http://127.0.0.1:{port}").exchange(released(command("make 500000000")))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        reply.close()


def test_tls_with_the_named_ca_carries_a_transfer(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    with served_by_process(tmp_path / "log", tls_certificate=certificate, tls_private_key=key) as (process, port):
        transport = HttpTransport(f"https://127.0.0.1:{port}", tls_ca=certificate)
        body = [b"y" * 1_000_000] * 5
        assert read_all(transport.exchange(released(command("echo 5000000"), *body))) == b"".join(body)
        with pytest.raises(TransportError, match="409"):
            transport.exchange(released(command("refuse replay"), *[b"x" * (1 << 20)] * 64))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_tls_is_refused_for_an_unknown_ca_another_name_an_older_version_and_plain_http(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    with served_by_process(tmp_path / "log", tls_certificate=certificate, tls_private_key=key) as (_, port):
        with pytest.raises(TransportError, match="not trusted"):
            HttpTransport(f"https://127.0.0.1:{port}").exchange(released(route=Route.KEYSET))
        with pytest.raises(TransportError, match="not trusted"):
            HttpTransport(f"https://localhost:{port}", tls_ca=certificate).exchange(released(route=Route.KEYSET))
        with pytest.raises(TransportError):
            HttpTransport(f"http://127.0.0.1:{port}").exchange(released(route=Route.KEYSET))
        older = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        older.load_verify_locations(certificate)
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", port)) as connection, pytest.raises((ssl.SSLError, OSError)):
            older.wrap_socket(connection, server_hostname="127.0.0.1")


def test_tls_server_that_speaks_only_an_older_version_is_refused(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        transport = HttpTransport(f"https://127.0.0.1:{listener.getsockname()[1]}", tls_ca=certificate)
        with pytest.raises(TransportError, match=r"TLS 1\.3"):
            transport.exchange(released(route=Route.KEYSET))
        thread.join(10)


def test_refusal_under_tls_while_the_body_is_sent_is_heard(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    body = b'{"code":"limit_exceeded"}'
    head = f"HTTP/1.1 413 X\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1000)
                secure.sendall(head.encode() + body)
                # A close with unread bytes resets the connection, and the reset may overtake the refusal.
                secure.settimeout(10)
                with contextlib.suppress(OSError):
                    while secure.recv(1 << 16):
                        pass

        thread = threading.Thread(target=answer)
        thread.start()
        transport = HttpTransport(f"https://127.0.0.1:{listener.getsockname()[1]}", tls_ca=certificate)
        with pytest.raises(TransportError, match="limit_exceeded"):
            transport.exchange(released(command("x"), *[b"x" * (1 << 20)] * 64))
        thread.join(10)


def test_session_secrets_are_not_logged_by_an_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "secrets"))
    with served_by_process(tmp_path / "log", tls_certificate=certificate, tls_private_key=key) as (_, port):
        transport = HttpTransport(f"https://127.0.0.1:{port}", tls_ca=certificate)
        assert read_all(transport.exchange(released(route=Route.KEYSET))) == KEYSET
    assert not (tmp_path / "secrets").exists()


def test_unusable_tls_files_are_refused_by_name(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    missing, garbage = tmp_path / "none.pem", tmp_path / "garbage.pem"
    garbage.write_text("not PEM")
    for pair, named in (
        ((missing, key), "tls_certificate cannot be read"),
        ((certificate, missing), "tls_private_key cannot be read"),
        ((garbage, key), "unencrypted private key"),
    ):
        settings = make_settings({"port": 0, "tls_certificate": pair[0], "tls_private_key": pair[1]})
        with pytest.raises(UsageError, match=named):
            serve(EchoCloud(), settings)


@pytest.mark.parametrize("text", [None, "not PEM"])
def test_unusable_ca_file_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TransportError, match="CA file"):
        HttpTransport("https://127.0.0.1", tls_ca=path)


def test_encrypted_key_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    certificate, path = write_certificate(tmp_path)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    settings = make_settings({"port": 0, "tls_certificate": certificate, "tls_private_key": path})
    with pytest.raises(UsageError, match="unencrypted"):
        serve(EchoCloud(), settings)


def test_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = make_settings({"port": listener.getsockname()[1]})
        with pytest.raises(UsageError, match="another port"):
            serve(EchoCloud(), settings)


def test_public_address_without_tls_is_refused_however_the_settings_were_made() -> None:
    with pytest.raises(UsageError, match="TLS"):
        serve(EchoCloud(), ServerSettings(host="0.0.0.0"))  # noqa: S104


def test_signal_handlers_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    seen = []
    stop = threading.Event()

    def ready(_host: str, _port: int) -> None:
        seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
        stop.set()

    settings = make_settings({"port": 0})
    thread = threading.Thread(target=serve, args=(EchoCloud(), settings), kwargs={"ready": ready, "stop": stop})
    thread.start()
    thread.join(20)
    assert seen == [before]
