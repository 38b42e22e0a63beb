"""`splitinfer model calibrate`, and the part of `model measure` that certifies calibrated codecs; thin."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitinfer.cli.progress import progress_bar
from splitinfer.errors import ArtefactError, UsageError
from splitinfer.home import Home

if TYPE_CHECKING:
    from splitinfer.calibration.certify import Texts
    from splitinfer.model.loading import LoadedModel
    from trust_models.certificates import Certificate

__all__ = ["add_calibrate_parser", "add_certify_arguments", "certify_levels"]

_TEXT = "make the artefact of codec ftc1 for a model, from public text"
_DESCRIPTION = """Make the artefact of codec ftc1 for a model, from public text alone: the artefact is given to every
other side, and it holds the covariance of what was read. Never give it private text, nor what users wrote."""
_TOKENS, _CHANNELS, _FIRST = 200_000, 4096, 4


def add_calibrate_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `model calibrate`."""
    parser = commands.add_parser("calibrate", help=_TEXT, description=_DESCRIPTION)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument(
        "--corpus", nargs="+", type=Path, required=True, metavar="FILE", help="public UTF-8 texts, of several kinds"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write ftc1.safetensors here, not to the state folder")
    parser.add_argument(
        "--tokens", type=int, default=_TOKENS, metavar="N", help=f"read about so many (default {_TOKENS:,})"
    )
    parser.add_argument(
        "--group-channels",
        type=int,
        default=_CHANNELS,
        metavar="N",
        help=f"layers that share a basis (default {_CHANNELS:,})",
    )
    parser.add_argument(
        "--first-tokens", type=int, default=_FIRST, metavar="N", help=f"travel as they are (default {_FIRST})"
    )
    parser.add_argument("--forward-only", action="store_true", help="no gradients: cheaper, and about twice the bits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=_calibrate)


def add_certify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add to `model measure` what certificates are made from."""
    parser.add_argument(
        "--foreign", nargs="+", default=[], type=Path, metavar="FILE", help="ftc1: texts of a kind not calibrated on"
    )
    parser.add_argument(
        "--questions", nargs="+", default=[], type=Path, metavar="FILE", help="ftc1: questions with answers, JSON lines"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="ftc1: write ftc1.certificates.json here")


def _calibrate(args: argparse.Namespace) -> int:
    from splitinfer.calibration.artefacts import put_artefact
    from splitinfer.calibration.calibrate import Calibration, calibrate
    from splitinfer.calibration.sequences import read_corpus
    from splitinfer.codec.transform.artefact import FILE_NAME
    from splitinfer.model.digest_cache import DigestCache
    from splitinfer.model.loading import load

    if not (args.tokens > 0 and args.group_channels > 0 and 0 <= args.first_tokens <= 64):
        raise UsageError("write --tokens and --group-channels above 0, and --first-tokens from 0 to 64")
    began = time.perf_counter()
    home, corpus = Home.find(args.home), read_corpus(args.corpus)
    loaded = load(args.source, digest_cache=DigestCache(home.digests))
    settings = Calibration(
        limit_tokens=args.tokens,
        group_channels=args.group_channels,
        first_tokens=args.first_tokens,
        is_weighted=not args.forward_only,
    )
    with progress_bar("calibrate", unit="text") as progress:
        artefact = calibrate(loaded, corpus, settings, progress=progress)
    path = put_artefact(artefact, home=home, out=args.out / FILE_NAME if args.out else None)
    facts = {
        "artefact_sha256": artefact.digest,
        "file": str(path),
        "bytes": path.stat().st_size,
        "weights_sha256": artefact.facts.weights_sha256,
        "corpus_sha256": corpus.sha256,
        "corpus_tokens": artefact.facts.corpus_tokens,
        "groups": len(artefact.groups),
        "components": [int(group.bits.shape[1]) for group in artefact.groups],
        "levels": artefact.facts.levels,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:24} {value}")
    return 0


def certify_levels(
    args: argparse.Namespace, loaded: LoadedModel, *, home: Home, names: Sequence[str]
) -> dict[str, Certificate]:
    """Certify levels of the model's artefact and keep the certificates; raises ArtefactError where there is none."""
    if not names:
        return {}
    from splitinfer.calibration.artefacts import CERTIFICATES_NAME, Held, find_artefact, put_certificate
    from splitinfer.calibration.certify import certify

    artefact = find_artefact(Held(home, args.out or loaded.directory), loaded.identity)
    if artefact is None:
        raise ArtefactError("this model has no artefact; run `splitinfer model calibrate SOURCE --corpus FILE` first")
    texts = _texts(args, loaded)
    found: dict[str, Certificate] = {}
    for name in names:
        with progress_bar(name, unit="window") as progress:
            found[name] = certify(loaded, artefact, name, texts, windows_count=args.windows, progress=progress)
        if not args.json:
            _print(name, found[name])
    put_certificate(found, artefact, home=home, out=args.out / CERTIFICATES_NAME if args.out else None)
    return found


def _texts(args: argparse.Namespace, loaded: LoadedModel) -> Texts:
    """Return what to measure on: the files given, or what ships with the model and the package."""
    from splitinfer.calibration.certify import Texts
    from splitinfer.calibration.questions import QUESTIONS_NAME, read_questions
    from splitinfer.model.measure_texts import built_in_texts

    prose, *own = built_in_texts(loaded.directory)
    given = [_read(path) for path in args.text]
    shipped = loaded.directory / QUESTIONS_NAME
    paths = args.questions or ([shipped] if shipped.is_file() and not given else [])
    return Texts(
        own=tuple(given or own or [prose]),
        foreign=tuple(map(_read, args.foreign)) or ((prose,) if given or own else ()),
        questions=read_questions(loaded, paths),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text; write the paths of text files") from error


def _print(name: str, found: Certificate) -> None:
    print(f"{name:9} {found.loss.sentence()}")
    rows = (("long", found.long), ("foreign", found.foreign), ("answers", found.answers))
    for label, part in (*rows, ("needles", found.needles), ("digits", found.digits)):
        print(f"  {label:8} {part.sentence() if part else 'not measured'}")
    print(f"  saturated {100 * found.saturation:.3f} %, long contexts of {found.long_tokens:,} tokens")
