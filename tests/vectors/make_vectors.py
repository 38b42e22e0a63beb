"""Write the frozen vectors of docs/format.md, or with --check compare all of them with what is derived again.

    python tests/vectors/make_vectors.py            writes derivations/, receive/, wraps.json
    python tests/vectors/make_vectors.py --check    exit 1 and the names of the files that differ

Written from docs/format.md alone. HPKE draws its own randomness, so wraps are kept in wraps.json, opened again step by
step, and used as they are; every other byte is derived. Delete wraps.json to make new ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import cases_artefact
import cases_chunks
import cases_form
import cases_head
import cases_honest
import cases_layout
import cases_manifest
import cases_recipient
import cases_reply
import cases_resume
import cases_rows
import cases_turns
from derived import derivations
from reference import Json
from vector import context, numbered
from world import Wraps

HERE = Path(__file__).parent
WRAPS = HERE / "wraps.json"
PARTS = (
    cases_honest,
    cases_recipient,
    cases_form,
    cases_head,
    cases_chunks,
    cases_manifest,
    cases_reply,
    cases_layout,
    cases_turns,
    cases_resume,
    cases_rows,
    cases_artefact,
)


def files(wraps: Wraps) -> dict[Path, bytes]:
    """Return every frozen file."""
    made = {HERE / "derivations" / f"{name}.json": _text(value) for name, value in derivations(wraps).items()}
    made[HERE / "receive" / "context.json"] = _text(context())
    for name, vector in numbered([vector for part in PARTS for vector in part.VECTORS]).items():
        folder = HERE / "receive" / name
        made[folder / vector.file_name] = vector.data(wraps)
        made[folder / "vector.json"] = _text(vector.description(wraps))
    made[WRAPS] = _text(wraps.used)
    return made


def _text(value: Json) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def check(made: dict[Path, bytes]) -> list[str]:
    """Return the names of frozen files that are missing, different or unknown to the script."""
    found = {path for folder in ("derivations", "receive") for path in (HERE / folder).rglob("*.*") if path.is_file()}
    wrong = (found | {WRAPS}) ^ set(made)
    wrong |= {path for path in set(made) - wrong if path.read_bytes() != made[path]}
    return sorted(str(path.relative_to(HERE)) for path in wrong)


def write(made: dict[Path, bytes]) -> None:
    for folder in ("derivations", "receive"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for path, data in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    is_check = parser.parse_args().check
    known = json.loads(WRAPS.read_text()) if WRAPS.is_file() else {}
    made = files(Wraps(known, may_make=not is_check))
    wrong = check(made) if is_check else []
    if not is_check:
        write(made)
    sys.stdout.write("".join(f"differs: {name}\n" for name in wrong) or f"{len(made)} files\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
