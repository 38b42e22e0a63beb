"""Write the text on which `splitinfer model measure embedded` measures, besides plain prose: held-out contexts.

    python tools/write_held_out_text.py

Tables and notes of the synthetic corpus whose entities were never trained on; the same text every time.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitinfer import embedded
from tools.corpus import held_out_context

CONTEXTS, CONTEXT_TOKENS = 8, 700


def text() -> str:
    """Return the contexts one after another, a line between them."""
    contexts = [
        held_out_context(
            seed, tokens=CONTEXT_TOKENS, kind="both", questions=1, count_tokens=lambda piece: len(piece) // 2
        )
        for seed in range(CONTEXTS)
    ]
    return "\n\n".join("\n".join(segment.text.strip() for segment in context.segments) for context in contexts) + "\n"


if __name__ == "__main__":
    (embedded.path() / "held_out.txt").write_text(text(), encoding="utf-8")
