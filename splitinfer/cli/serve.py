"""`splitinfer serve`: a cloud process; keys and model from the state folder, settings from a file or options."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from splitinfer.attestation.keyset import identity_sha256
from splitinfer.errors import UsageError
from splitinfer.home import Home
from splitinfer.home.cloud_state import allow_device, allowed_devices, make_replica
from splitinfer.home.mask_marks import MarkFiles
from splitinfer.home.remotes import Remote, save_remote
from trust_models.remote_url import is_loopback

if TYPE_CHECKING:
    from splitinfer.cloud import CloudService

__all__ = ["add_parser"]

_SWEEP_SECONDS = 30.0
_SETTINGS = ("host", "port", "prefix_bytes", "session_bytes")

_EPILOG = """examples:
  splitinfer --home ./cloud serve --pair ~/.splitinfer   loopback; writes both sides, then serves
  splitinfer serve --config server.toml                  host, port, tls_certificate, tls_private_key, limits
  splitinfer --home /var/lib/splitinfer serve --model ./Llama-3.2-1B --port 8471

A public address needs TLS. Devices are allowed with `splitinfer keys allow KEY`. SIGTERM drains.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `serve` command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve prefill and decode to allowed devices",
        description="Serve prefill and decode to allowed devices, over sealed streams.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file of server settings")
    parser.add_argument("--model", default="embedded", metavar="SOURCE", help="embedded, a directory, or a hub id")
    parser.add_argument("--host", help="address to bind (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind (default 8471; 0 takes a free one)")
    parser.add_argument("--prefix-bytes", type=int, metavar="N", help="memory for caches of public text; 0 for none")
    parser.add_argument("--session-bytes", type=int, metavar="N", help="memory for caches between turns; 0 for none")
    parser.add_argument("--pair", metavar="HOME", help="state folder of a device on this machine to pair with")
    parser.add_argument("--name", default="default", help="name of the remote that --pair writes")
    parser.add_argument("--json", action="store_true", help="print one JSON object when ready")
    parser.set_defaults(handler=_serve)


def _serve(args: argparse.Namespace) -> int:
    try:
        from server.run import serve
        from server.settings import ServerSettings, load_settings, make_settings
    except ModuleNotFoundError as error:
        raise UsageError("serving needs the extra: pip install 'splitinfer[server]'") from error
    from splitinfer.cloud import CloudService
    from splitinfer.cloud.halves import make_halves
    from splitinfer.cloud.prefixes import PrefixLimits
    from splitinfer.cloud.sessions import SessionLimits
    from splitinfer.session import load_artefact, load_engine

    settings = load_settings(args.config) if args.config else ServerSettings()
    given = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    settings = make_settings({**settings.model_dump(), **given})
    home = Home.find(args.home)
    if args.pair:
        _require_loopback(settings.host)
        if home.path.resolve() == Path(args.pair).resolve():
            raise UsageError("a cloud has a state folder of its own: write --home DIR before serve")
        _pair(home, Home(Path(args.pair)))
    replica = make_replica(home)
    engine = load_engine(args.model, home=home)
    cloud = CloudService(
        engine,
        replica,
        allowed=lambda: allowed_devices(home),
        clock=time.time,
        randomness=secrets.token_bytes,
        sessions=SessionLimits(settings.max_sessions, settings.session_bytes, settings.session_idle_seconds),
        prefixes=PrefixLimits(settings.prefix_bytes, settings.prefix_device_bytes),
        artefact=load_artefact(engine, home=home),
        halves=make_halves(engine, marks=MarkFiles(home), cache_folder=home.folder("encoded-weights")),
    )
    pin = replica.current().keyset.certificate.body.identity
    scheme = "https" if settings.tls_certificate else "http"

    def ready(host: str, port: int) -> None:
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        _announce(args, url, identity_sha256(bytes.fromhex(pin)))

    stop = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(cloud, stop), daemon=True)
    sweeper.start()
    try:
        serve(cloud, settings, ready=ready)
    finally:
        stop.set()
        sweeper.join()
        cloud.close()
    return 0


def _sweep(cloud: CloudService, stop: threading.Event) -> None:
    while not stop.wait(_SWEEP_SECONDS):
        cloud.drop_expired()


def _announce(args: argparse.Namespace, url: str, fingerprint: str) -> None:
    if args.pair:
        save_remote(Home(Path(args.pair)), args.name, Remote(url, fingerprint))
    if args.json:
        print(json.dumps({"url": url, "identity_sha256": fingerprint}), flush=True)
    else:
        print(f"serving at {url}\nidentity {fingerprint}", file=sys.stderr, flush=True)


def _require_loopback(host: str) -> None:
    if not is_loopback(host):
        raise UsageError("--pair works on loopback only; use `keys allow` and `keys trust` between machines")


def _pair(cloud: Home, device: Home) -> None:
    cloud.key("identity")
    allow_device(cloud, device.key("device").public_key().public_bytes_raw().hex())
