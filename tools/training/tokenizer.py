"""The tokenizer: byte-level BPE of 2,048 tokens, every digit its own, trained on the corpus."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.corpus.prompts import make_context

__all__ = ["SPECIAL", "train_tokenizer"]

SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|note|>", "<|doc|>", "<|user|>", "<|assistant|>")
_CONTEXTS = 6000


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
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, contexts), trainer)
    return tokenizer
