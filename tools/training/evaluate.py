"""Exact match on held-out contexts during training, several questions in a row on one context."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer

from tools.corpus.prompts import Kind, held_out_context
from tools.training.network import Network
from tools.training.rows import ASSISTANT, BOS, DOC, END, NOTE, USER

__all__ = ["accuracy"]

_QUESTIONS = 8


# (ids of the context, (ids of the question, ids of the answer) for each question)
Asked = tuple[list[int], list[tuple[list[int], list[int]]]]


@cache
def _contexts(tokenizer: Tokenizer, kind: Kind, tokens: int, count: int) -> list[Asked]:
    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    found = []
    for seed in range(count):
        context = held_out_context(
            -1 - seed, tokens=tokens, kind=kind, questions=_QUESTIONS, count_tokens=lambda text: len(ids(text))
        )
        prompt = [BOS]
        for index, passage in enumerate(context.passages):
            prompt += [DOC if context.has_document and index == 0 else NOTE, *ids(passage.text + "\n")]
        asked = [
            ([USER, *ids(f" {question.text}"), ASSISTANT], [*ids(f" {question.answer}"), END])
            for question in context.questions
        ]
        found.append((prompt, asked))
    return found


@torch.no_grad()
def accuracy(network: Network, tokenizer: Tokenizer, kind: Kind, tokens: int, *, contexts: int) -> float:
    """Return the share of questions that greedy decoding answers exactly; contexts that training never has."""
    right = total = 0
    for prompt, asked in _contexts(tokenizer, kind, tokens, contexts):
        for question, answer in asked:
            ids = torch.tensor([prompt + question + answer])
            hidden, _ = network(ids, torch.arange(ids.size(1))[None])
            guesses = F.linear(hidden[0, -len(answer) - 1 : -1], network.embedding).argmax(-1)
            right, total = right + int(guesses.tolist() == answer), total + 1
    return right / total
