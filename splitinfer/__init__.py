"""splitinfer: run a language model across a trusted device and a cloud, under a written policy.

    from splitinfer import Session, public, note, question
    with Session.open("policy.toml") as session:
        answer = session.run([public(path="manual.md"), note("..."), question("...")])

Names are imported on first use, so that the byte side never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitinfer.answer import Answer
    from splitinfer.errors import SplitInferError
    from splitinfer.handoff import SamplingParams, Segment
    from splitinfer.joint.offline import prepare_pool
    from splitinfer.segments import answered, document, message, note, private, public, question
    from splitinfer.session import Session

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "SamplingParams",
    "Segment",
    "Session",
    "SplitInferError",
    "__version__",
    "answered",
    "document",
    "message",
    "note",
    "prepare_pool",
    "private",
    "public",
    "question",
]

_HOMES = {
    "Answer": "splitinfer.answer",
    "SamplingParams": "splitinfer.handoff",
    "Segment": "splitinfer.handoff",
    "Session": "splitinfer.session",
    "prepare_pool": "splitinfer.joint.offline",
    "SplitInferError": "splitinfer.errors",
    **dict.fromkeys(
        ("answered", "document", "message", "note", "private", "public", "question"), "splitinfer.segments"
    ),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
