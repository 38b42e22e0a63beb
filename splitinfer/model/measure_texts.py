"""The texts on which a codec's loss is measured where the caller names none; shipped with the package, all synthetic.

`prose.txt` is plain English, written for this. The embedded model speaks of tables and notes only, so for it there are
held-out ones beside it, of entities that it was never trained on.
"""

from __future__ import annotations

from pathlib import Path

from splitinfer import embedded

__all__ = ["built_in_texts"]


def built_in_texts(directory: Path) -> list[str]:
    """Return the texts for the model in `directory`."""
    texts = [(Path(__file__).parent / "prose.txt").read_text(encoding="utf-8")]
    if directory.resolve() == embedded.path():
        texts.append((embedded.path() / "held_out.txt").read_text(encoding="utf-8"))
    return texts
