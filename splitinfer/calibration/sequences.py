"""Public texts -> sequences of token ids, each with the point where its cache ends and its loss begins; no model runs.

A form feed in a file ends a sequence, so that whole prompts can stand in it one after another; longer pieces are cut,
to lengths that vary. A record separator (U+001E) says where a sequence's cache ends, before a question say; without one
that is drawn. Lengths and points are drawn from the corpus alone, so that a calibration can be repeated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from splitinfer.errors import UsageError

__all__ = ["Corpus", "Piece", "read_corpus", "sequences_of"]

_LENGTHS = (128, 256, 512, 512, 768, 1024)
_LEAST_TOKENS = 32
_EARLIEST_CUT, _LEAST_SCORED = 0.5, 8
_END_OF_CACHE = "\x1e"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens: the cache of the first `context_tokens` is differentiated by the loss on the others."""

    token_ids: tuple[int, ...] = field(repr=False)
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts and the SHA-256 over their files' digests, in the order given."""

    texts: tuple[str, ...] = field(repr=False)
    sha256: str


def read_corpus(paths: Sequence[Path]) -> Corpus:
    """Read UTF-8 files; raises UsageError for one that cannot be read, and for none."""
    if not paths:
        raise UsageError("a calibration needs text; write --corpus and the paths of public text files")
    digest, texts = hashlib.sha256(b"splitinfer/v1 corpus\n"), []
    for path in paths:
        try:
            data = path.read_bytes()
            texts.append(data.decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as UTF-8 text; write the paths of text files") from error
        digest.update(hashlib.sha256(data).digest())
    return Corpus(tuple(texts), digest.hexdigest())


def sequences_of(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, max_positions: int, limit_tokens: int
) -> tuple[Piece, ...]:
    """Cut the corpus into sequences, taken in turn from every file, until they have about `limit_tokens` tokens.

    Raises UsageError where there are fewer than eight.
    """
    rng = random.Random(corpus.sha256)  # noqa: S311
    queues = [iter(list(_cut(text, tokenizer, max_positions, rng))) for text in corpus.texts]
    found: list[Piece] = []
    tokens = 0
    while queues and tokens < limit_tokens:
        for queue in list(queues):
            piece = next(queue, None)
            if piece is None:
                queues.remove(queue)
                continue
            found.append(piece)
            tokens += len(piece.token_ids)
    if len(found) < 8:
        raise UsageError("the corpus is too short: eight sequences of 32 tokens are the least")
    return tuple(found)


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, max_positions: int, rng: random.Random) -> Iterable[Piece]:
    begin = tokenizer.bos_token_id
    for piece in text.split("\f"):
        before, mark, after = piece.partition(_END_OF_CACHE)
        ids = tokenizer.encode(before, add_special_tokens=False, verbose=False)
        if mark:
            scored = tokenizer.encode(after, add_special_tokens=False, verbose=False)
            if ids and scored and len(ids) + len(scored) <= max_positions:
                yield Piece((*ids, *scored), len(ids))
            continue
        at = 0
        while len(ids) - at >= _LEAST_TOKENS:
            length = min(rng.choice(_LENGTHS), max_positions)
            own = ids[at : at + length]
            at += length
            if begin is not None and own[0] != begin:
                own = [begin, *own[: max_positions - 1]]
            if len(own) >= _LEAST_TOKENS:
                least = max(1, int(_EARLIEST_CUT * len(own)))
                yield Piece(tuple(own), rng.randint(least, len(own) - _LEAST_SCORED))
