"""The tokenizer: byte-level BPE of 2,048 tokens, every digit its own, trained on the corpus.

A point or comma goes with the digit behind it, and a point with a letter. A copier stands at a token of the source and
cannot see what follows there: were the point of "$592.46" the token that ends a sentence after "$592", nothing at that
place would tell whether the value goes on.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.corpus.prompts import make_context

__all__ = ["SPECIAL", "train_tokenizer"]

SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|note|>", "<|doc|>", "<|user|>", "<|assistant|>")
_CONTEXTS = 6000
_PIECES = r"[.,]?\p{N}|\.\p{L}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"


def _points(contexts: int) -> Iterator[str]:
    """Yield every pair of a point and a letter so often that each becomes a token."""
    return (f".{letter}" for letter in string.ascii_lowercase for _ in range(contexts))


def _texts(seed: int, contexts: int) -> Iterator[str]:
    for index in range(contexts):
        context = make_context(
            random.Random(f"tokenizer/{seed}/{index}"),
            tokens=200,
            kind="mixed",
            questions=4,
            count_tokens=lambda text: len(text) // 3,
            split="train",
        )
        yield from (passage.text + "\n" for passage in context.passages)
        for question in context.questions:
            yield f" {question.text}"
            yield f" {question.answer}"


def train_tokenizer(*, seed: int, vocabulary: int, contexts: int = _CONTEXTS) -> Tokenizer:
    """Train it on `contexts` texts; equal seeds give equal tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(_points(contexts), _texts(seed, contexts)), trainer)
    return tokenizer
