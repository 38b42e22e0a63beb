"""Builds the prompt: segments -> PromptTokens, whose ids depend on roles and texts only; on the device.

Private text cannot forge a role: texts are tokenised with special tokens split into ordinary ones, and any control
token that comes out all the same (a vocabulary may hold its spelling as a piece) is cut apart. Nor do the ids depend on
the day: the date that a template may write is pinned (see `template`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from splitinfer.errors import EmptyPromptError, TemplateError
from splitinfer.handoff import Label, PromptTokens, Segment
from splitinfer.model.template import literals

__all__ = ["continued", "text_token_ids", "tokenize"]


def tokenize(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment]) -> PromptTokens:
    """Tokenise a prompt; a literal belongs to the segment after it, the trailing one to the last.

    Texts are stripped and segments without text are dropped. White space that ends a literal is tokenised together
    with the text after it, as it would be in the whole string. Raises EmptyPromptError and TemplateError.
    """
    kept = [(segment, segment.text.strip()) for segment in segments]
    kept = [(segment, text) for segment, text in kept if text]
    if not kept:
        raise EmptyPromptError("the prompt has no text; give a question, a document or a note")
    texts = [text for _, text in kept]
    *before, trailing = literals(tokenizer, [segment.role for segment, _ in kept], texts=texts)
    control = _control_ids(tokenizer)
    parts = [_segment_parts(tokenizer, pair[0], pair[1], control) for pair in zip(before, texts, strict=True)]
    parts[0] = (_start_ids(tokenizer) + parts[0][0], parts[0][1])
    ends = list(itertools.accumulate(len(head) + len(body) for head, body in parts))
    prompt = PromptTokens(
        token_ids=tuple(token for head, body in parts for token in head + body),
        segment_lengths=tuple(len(head) + len(body) for head, body in parts),
        labels=tuple(segment.label or Label.PRIVATE for segment, _ in kept),
        text_spans=tuple((end - len(body), end) for end, (_, body) in zip(ends, parts, strict=True)),
    )
    return continued(tokenizer, prompt, trailing)


def continued(tokenizer: PreTrainedTokenizerBase, prompt: PromptTokens, literal: str) -> PromptTokens:
    """Return the prompt with a literal after it, which belongs to its last segment and not to that one's text."""
    added = _literal_ids(tokenizer, literal)
    lengths = (*prompt.segment_lengths[:-1], prompt.segment_lengths[-1] + len(added))
    return replace(prompt, token_ids=(*prompt.token_ids, *added), segment_lengths=lengths)


def text_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return, sorted, all ids that a text can have: the vocabulary without its control tokens."""
    return tuple(sorted(set(tokenizer.get_vocab().values()) - _control_ids(tokenizer)))


def _segment_parts(
    tokenizer: PreTrainedTokenizerBase, literal: str, text: str, control: frozenset[int]
) -> tuple[list[int], list[int]]:
    head = literal.rstrip()
    return _literal_ids(tokenizer, head), _text_ids(tokenizer, literal[len(head) :] + text, control)


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # A template writes its own start token; without one, the tokenizer's own habit is followed.
    start = tokenizer.bos_token_id
    if tokenizer.chat_template or start is None:
        return []
    return [start] if list(tokenizer("").input_ids)[:1] == [start] else []


def _literal_ids(tokenizer: PreTrainedTokenizerBase, literal: str) -> list[int]:
    if not literal:
        return []
    return list(tokenizer(literal, add_special_tokens=False, split_special_tokens=False).input_ids)


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    # Added tokens that are white space only (runs of newlines or blanks) are ordinary text.
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special or token.content.strip()}
    return frozenset((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int]) -> list[int]:
    ids: list[int] = []
    waiting = [text]
    while waiting:
        piece = waiting.pop()
        encoded = tokenizer(
            piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        spans = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        cuts = sorted({span[0] + 1 for token, span in spans if token in control})
        if not cuts:
            ids.extend(encoded.input_ids)
        elif cuts[-1] >= len(piece):
            raise TemplateError("the tokenizer gives a control token for a single character of ordinary text")
        else:
            edges = [0, *cuts, len(piece)]
            waiting.extend(reversed([piece[a:b] for a, b in itertools.pairwise(edges)]))
    return ids
