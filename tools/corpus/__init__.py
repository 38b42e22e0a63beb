"""The synthetic corpus of the embedded model: private notes, public tables, questions answered by copying a span."""

from tools.corpus.prompts import Context, Kind, held_out_context, held_out_prompts
from tools.corpus.questions import Question

__all__ = ["Context", "Kind", "Question", "held_out_context", "held_out_prompts"]
