"""Real cloud processes and paired state folders for integration tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitinfer.home import Home
from splitinfer.home.remotes import Remote, load_remote, save_remote

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


@dataclass
class CloudProcess:
    """A running `splitinfer serve`: its process, URL, pinned identity, state folder and log file."""

    process: subprocess.Popen[str]
    url: str
    identity_sha256: str
    home: Path
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def cloud_process(base: Path, *, model: str = "embedded", arguments: tuple[str, ...] = ()) -> Iterator[CloudProcess]:
    """Start a cloud in `base/cloud`, paired with the device folder `base/device`, on a free loopback port."""
    base.mkdir(parents=True, exist_ok=True)
    home, device, log = base / "cloud", base / "device", base / "cloud.log"
    Home(device)
    command = [sys.executable, "-m", "splitinfer", "--home", str(home), "serve", "--port", "0", "--json"]
    command += ["--pair", str(device), "--model", model, *arguments]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(), cwd=base
        ) as process,
    ):
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            process.wait(timeout=30)
            raise AssertionError(f"the cloud did not start: {log.read_text()}")
        ready = json.loads(line)
        cloud = CloudProcess(process, ready["url"], ready["identity_sha256"], home, log)
        try:
            yield cloud
        finally:
            cloud.stop()


def route_through(device: Path, url: str, name: str = "default") -> None:
    """Point the device's remote at another address (a proxy), with the same pinned identity."""
    home = Home(device)
    remote = load_remote(home, name)
    save_remote(home, name, Remote(url, remote.identity_sha256, remote.tls_ca))


def run_cli(
    *arguments: str, home: Path, text: str | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `python -m splitinfer` in a process of its own."""
    command = [sys.executable, "-m", "splitinfer", "--home", str(home), *arguments]
    return subprocess.run(
        command, input=text or "", capture_output=True, text=True, env=environment(), timeout=timeout, check=False
    )
