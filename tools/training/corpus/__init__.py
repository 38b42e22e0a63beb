"""The synthetic corpus of the next weights: private notes, public tables, questions answered by copying a span.

`tools.corpus` is the corpus of the weights that the package ships now; this one takes its place with the new ones.
"""

from tools.training.corpus.prompts import Context, Kind, held_out_context, held_out_prompts
from tools.training.corpus.questions import Question

__all__ = ["Context", "Kind", "Question", "held_out_context", "held_out_prompts"]
