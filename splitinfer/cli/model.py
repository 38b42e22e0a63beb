"""`splitinfer model`: shows what a model is, its digests, and fetches one from the hub; thin."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from splitinfer.cli.calibrate import add_calibrate_parser, add_certify_arguments, certify_levels
from splitinfer.cli.progress import progress_bar
from splitinfer.egress.log import AuditLog
from splitinfer.errors import (
    ModelNotFoundError,
    TransportError,
    UnsupportedCacheError,
    UnsupportedModelError,
    UsageError,
)
from splitinfer.home import Home
from splitinfer.home.audit_log import open_log
from splitinfer.home.losses import LossFile
from splitinfer.model.identity import identify, read_json
from trust_models.codecs import CALIBRATED, LOSSY, Loss

__all__ = ["add_parser", "fetch"]

_MEASURE_TEXT = "measure what lossy codecs cost a model on texts, and keep the figures"
# Weights as safetensors, settings and tokenizers; never pickles, never code.
FETCH_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model")
_EPILOG = """examples:
  splitinfer model info embedded
  splitinfer model digest ./my-model --json
  splitinfer model fetch Qwen/Qwen3-0.6B
  splitinfer model measure embedded                                  on a text that comes with the package
  splitinfer model measure ./my-model --codec q8 --text notes.txt    on texts of the kind that it reads
  splitinfer model calibrate ./my-model --corpus public-1.txt public-2.txt
  splitinfer model measure ./my-model --codec ftc1-1 --text public-3.txt --foreign code.txt
"""
_CONTEXT_TOKENS, _SCORED_TOKENS, _WINDOWS = 256, 64, 32


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `model` command."""
    parser = subparsers.add_parser(
        "model",
        help="show, identify and fetch models",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    rows: tuple[tuple[str, str, str, Callable[[argparse.Namespace], int]], ...] = (
        ("info", "SOURCE", "show a model's architecture and digests; loads it", _info),
        ("digest", "SOURCE", "print the weights digest, as a policy pins it", _digest),
        ("fetch", "HUB_ID", "download a model from the hub", _fetch),
    )
    for name, argument, text, handler in rows:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", metavar=argument)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(handler=handler)
    measured = commands.add_parser("measure", help=_MEASURE_TEXT, description=_MEASURE_TEXT)
    measured.add_argument("source", metavar="SOURCE")
    measured.add_argument("--codec", action="append", metavar="CODEC", help="measure this one; may be repeated")
    measured.add_argument(
        "--text",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE",
        help="texts of the kind that the model reads (default: plain prose that comes with the package)",
    )
    measured.add_argument("--windows", type=int, default=_WINDOWS, metavar="N", help="at most so many pieces of text")
    add_certify_arguments(measured)
    measured.add_argument("--json", action="store_true", help="print one JSON object")
    measured.set_defaults(handler=_measure)
    add_calibrate_parser(commands)


def _info(args: argparse.Namespace) -> int:
    from splitinfer.model.loading import load, resolve_source  # torch takes seconds to load

    directory = resolve_source(args.source)
    try:
        loaded = load(args.source)
        identity, ends_early = loaded.identity, loaded.prefill_ends_early
    except (UnsupportedCacheError, UnsupportedModelError):
        # What cannot be run still has digests; a form without any is refused again here.
        identity, ends_early = identify(directory), False
    config = read_json(directory / "config.json")
    names = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings")
    facts = {name: config[name] for name in names if name in config}
    facts |= {**asdict(identity), "prefill_ends_early": ends_early}
    _print({"source": args.source, **facts}, as_json=args.json)
    return 0


def _digest(args: argparse.Namespace) -> int:
    from splitinfer.model.loading import resolve_source

    identity = asdict(identify(resolve_source(args.source)))
    if args.json:
        _print(identity, as_json=True)
    else:
        print(identity["weights_sha256"])
    return 0


def _fetch(args: argparse.Namespace) -> int:
    log = open_log(Home.find(args.home))
    try:
        directory = fetch(args.source, log=lambda hub_id: _announce(log, hub_id))
    finally:
        log.close()
    _print({"source": args.source, "directory": str(directory), **asdict(identify(directory))}, as_json=args.json)
    return 0


def _measure(args: argparse.Namespace) -> int:
    """Measure lossy codecs and keep the figures in the state folder, where a policy's floor finds them."""
    from splitinfer import codec
    from splitinfer.cache.snapshot import CacheSnapshot
    from splitinfer.model.digest_cache import DigestCache
    from splitinfer.model.loading import load
    from splitinfer.model.measure import measure, windows
    from splitinfer.model.measure_texts import built_in_texts

    names = args.codec or [name for name in LOSSY if name not in CALIBRATED]
    unknown = sorted(set(names) - set(codec.CODECS))
    if unknown or args.windows < 2:
        raise UsageError(f"write --codec as one of {', '.join(codec.CODECS)}, and --windows as 2 or more")
    home = Home.find(args.home)
    given = [_read(path) for path in args.text]
    loaded = load(args.source, digest_cache=DigestCache(home.digests))
    texts = given or built_in_texts(loaded.directory)
    scored = windows(loaded, texts, context_tokens=_CONTEXT_TOKENS, scored_tokens=_SCORED_TOKENS, limit=args.windows)
    losses: dict[str, Loss] = {}
    certified = certify_levels(args, loaded, home=home, names=[name for name in names if name in CALIBRATED])
    for name in names:
        if name in CALIBRATED:
            continue

        def through(snapshot: CacheSnapshot, name: str = name) -> CacheSnapshot:
            return codec.move(snapshot, codec=name)

        with progress_bar(name, unit="window") as progress:
            losses[name] = measure(loaded, scored, through=through, progress=progress)
        LossFile(home).put(loaded.identity.weights_sha256, name, losses[name])
        if not args.json:
            print(f"{name:9} {losses[name].sentence()}")
    if args.json:
        figures = {name: asdict(loss) for name, loss in losses.items()}
        certificates = {name: found.to_json() for name, found in certified.items()}
        facts: dict[str, object] = {
            "weights_sha256": loaded.identity.weights_sha256,
            "codecs": figures,
            "certificates": certificates,
        }
        _print(facts, as_json=True)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text; write the paths of text files") from error


def _announce(log: AuditLog, hub_id: str) -> None:
    """Log the download before anything moves: the hub learns that this machine asks for this model."""
    log.append({"type": "download", "hub_id": hub_id})
    print(f"downloading {hub_id} from the hub, which learns that this machine asks for it", file=sys.stderr)


def fetch(hub_id: str, *, log: Callable[[str], None] | None = None) -> Path:
    """Download a model into the hub cache and return its directory; `log` is called with the id before anything moves.

    Raises ModelNotFoundError where the hub does not have it, TransportError where the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if log is not None:
        log(hub_id)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FETCH_PATTERNS)))
    except LocalEntryNotFoundError as error:
        raise TransportError("the hub cannot be reached; check the network, or copy the model here") from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFoundError(f"the hub does not offer {hub_id!r}; check the id and your access to it") from error
    except OSError as error:
        raise TransportError("the hub cannot be reached, or the files cannot be written here") from error


def _print(facts: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:24} {value}")
