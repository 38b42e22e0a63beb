"""A device that is stopped or killed in the middle of a remote run: what had moved is in a log that verifies."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinfer.egress.verification import read_records, verify
from splitinfer.home import Home
from splitinfer.model.engine import Engine
from splitinfer.segments import question
from splitinfer.session import Session
from tests.integration.conftest import CANARY
from tests.support.processes import CloudProcess, environment

# So hot that an end of text is as unlikely as any other token. With these seeds it comes after more than 2,500 tokens.
LONG = ("--max-new-tokens", "2500", "--temperature", "50")

Runs = tuple["subprocess.Popen[bytes]", "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def runs(cloud: CloudProcess, device: Home) -> Iterator[Runs]:
    """Two processes on one device that both stream an answer from the cloud, long enough to be stopped in it."""
    command = [sys.executable, "-m", "splitinfer", "--home", str(device.path), "run", "--policy", "sealed-decode"]
    command += ["--private-text", f"Who is {CANARY}?", *LONG]
    # A child of a background job ignores Ctrl-C, and so would these, were it not handled here when they start.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    with (
        subprocess.Popen([*command, "--seed", "3"], **options) as first,
        subprocess.Popen([*command, "--seed", "2"], **options) as second,
    ):
        try:
            _await_answer(first)
            # It must not end before the second has begun, however busy the machine.
            first.send_signal(signal.SIGSTOP)
            _await_answer(second)
            signal.signal(signal.SIGINT, handler)
            yield first, second
        finally:
            first.kill()
            second.kill()


def _await_answer(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.read(1), process.stderr.read() if process.stderr else ""


def of_process(records: list[dict[str, Any]], number: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the intent of the n-th of the last two runs by their order in the log, and its outcome or None."""
    intents = [record for record in records if record["type"] == "intent"][-2:]
    outcomes = {record["intent"]: record for record in records if record["type"] == "outcome"}
    return intents[number], outcomes.get(intents[number]["intent"])


def log_of(device: Home) -> list[dict[str, Any]]:
    return [dict(record) for record in read_records(device.audit)]


def test_ctrl_c_then_kill_minus_9(runs: Runs, device: Home, engine: Engine, cloud: CloudProcess) -> None:
    first, second = runs
    both = [of_process(log_of(device), number) for number in (0, 1)]
    assert [outcome for _, outcome in both] == [None, None]
    owners = {intent["owner"] for intent, _ in both}
    assert len(owners) == 2

    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    text = err.decode()
    assert first.returncode == 130, text
    assert text.count("error[interrupted]: ") == 1
    assert "incomplete" in text
    assert "Traceback" not in text
    assert CANARY.encode() not in out + err

    after = [of_process(log_of(device), number)[1] for number in (0, 1)]
    stopped = [outcome for outcome in after if outcome is not None]
    assert [outcome["status"] for outcome in stopped] == ["aborted"]
    assert stopped[0]["bytes_sent"] > 1000
    report = verify(device.audit, device.key("checkpoint").public_key())
    assert report.open_intents == 1

    # A living process's intent stays open when another one opens and closes the log.
    run_locally(device, engine)
    assert second.poll() is None
    assert verify(device.audit, device.key("checkpoint").public_key()).open_intents == 1

    second.kill()
    second.wait(30)
    assert verify(device.audit, device.key("checkpoint").public_key()).open_intents == 1
    run_locally(device, engine)
    closed = [of_process(log_of(device), number) for number in (0, 1)]
    unknown = [(intent, outcome) for intent, outcome in closed if outcome and outcome["status"] == "unknown"]
    assert len(unknown) == 1
    intent, outcome = unknown[0]
    assert outcome["bytes_up_at_most"] == intent["bytes_up_bound"]
    assert verify(device.audit, device.key("checkpoint").public_key()).open_intents == 0
    assert CANARY not in cloud.log.read_text()
    assert cloud.process.poll() is None


def run_locally(device: Home, engine: Engine) -> None:
    with Session.open("local", home=device, engine=engine) as session:
        session.run([question("a")], max_new_tokens=1)


def test_cloud_serves_on_after_its_clients_were_stopped(runs: Runs, cloud: CloudProcess, device: Home, engine: Engine):
    with Session.open("sealed-decode", home=device, engine=engine) as session:
        answer = session.run([question("Who?")], max_new_tokens=3)
    assert answer.receipt is not None
    assert Path(cloud.log).read_text().count("Traceback") == 0
