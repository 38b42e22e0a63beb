"""The synthetic corpus of the embedded model: private notes, public tables, questions answered by copying a span."""

from tools.corpus.prompts import Context, Kind, Question, held_out_context, held_out_prompts

__all__ = ["Context", "Kind", "Question", "held_out_context", "held_out_prompts"]
