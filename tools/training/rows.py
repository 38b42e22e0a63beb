"""Rows of tokens with the weight of each in the loss, and where certain heads should look."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import Formatter

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.corpus.fixed import fixed_texts, template_texts
from tools.corpus.marked import Fact, Span, capitalised
from tools.corpus.prompts import Context, Kind, make_context
from tools.corpus.questions import Question, Source

__all__ = [
    "AIMS",
    "ASSISTANT",
    "BOS",
    "DOC",
    "END",
    "NOTE",
    "USER",
    "Aim",
    "Batch",
    "Encoder",
    "Looks",
    "Row",
    "Stage",
    "collated",
]

PAD, BOS, END, NOTE, DOC, USER, ASSISTANT = range(7)
END_OF_SPECIAL = 7
_MOST_QUESTIONS = 60
_LOOK_TARGETS = 4
_FIRST_TOKENS = 3

# What a head should find: the owner and the noun of a value or a question, the link's noun in a question, the note's
# fact that names a row, an answer's first token, each next one. Where there is nothing to find, it should rest on the
# first token of the row, so that it moves nothing.
Aim = str
AIMS: tuple[Aim, ...] = ("owner", "noun", "link", "via", "first", "next")
_REST = (0,)
Looks = dict[Aim, list[tuple[int, tuple[int, ...]]]]


@dataclass(frozen=True, slots=True)
class Stage:
    """How the rows of a step are drawn.

    `repeats` is the share of rows that only teach copying, `whole_answers` that of answers shown to their end,
    `context_share` that of context tokens which are to be predicted, `strange` that of rows in which names and values
    are written in tokens drawn anew, `strange_nouns` that of the rows among these in which labels and nouns are so too,
    `alike` that of contexts whose keys and nouns share words; `has_gaps` lets positions jump; with `binds_ends` the
    token after a value, which names a row for questions through a note, looks for owner and noun as the value does.
    """

    row_tokens: int
    rows: int
    repeats: float
    has_gaps: bool
    whole_answers: float
    strange: float
    binds_ends: bool = False
    context_share: float = 0.08
    strange_nouns: float = 0.0
    alike: float = 0.0


@dataclass(slots=True)
class Row:
    """Token ids, their weights in the loss, positions, and (query, targets) for each aim."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    gaps: dict[int, int] = field(default_factory=dict)
    looks: Looks = field(default_factory=lambda: {aim: [] for aim in AIMS})
    starts: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], weights: Sequence[float]) -> int:
        """Append tokens; return where they begin."""
        start = len(self.ids)
        self.ids += ids
        self.weights += weights
        return start


@dataclass(frozen=True, slots=True)
class Batch:
    """Ids, weights, positions [rows, tokens]; for each aim queries [rows, n] and targets [rows, n, k], -1 for none."""

    ids: Tensor
    weights: Tensor
    positions: Tensor
    looks: dict[Aim, tuple[Tensor, Tensor]]


class _Tokens:
    """A text's tokens and which token covers each character."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        self.ids: list[int] = encoding.ids
        self._of_character = [0] * len(text)
        for index, (start, end) in enumerate(encoding.offsets):
            for place in range(start, end):
                self._of_character[place] = index

    def of(self, span: Span) -> range:
        """Return the tokens that cover the span."""
        return range(self._of_character[span.start], self._of_character[span.end - 1] + 1)

    def after(self, span: Span) -> int:
        """Return the token after the span: the first that knows where the span ends."""
        return self._of_character[span.end - 1] + 1


class Encoder:
    """Writes contexts and questions as rows."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._digits = [tokenizer.token_to_id(digit) for digit in "0123456789"]
        self._free = _free_tokens(tokenizer)
        self._words = _words(tokenizer)

    def count(self, text: str) -> int:
        """Return how many tokens the text has."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def repeats(self, rng: random.Random, tokens: int) -> Row:
        """Draw a row of blocks of random tokens that come again in random order, to learn copying."""
        row, blocks = Row(), list[list[int]]()
        while len(row.ids) < tokens:
            if blocks and rng.random() < 0.6:
                block = rng.choice(blocks)
                row.add(block, [0.0] + [1.0] * (len(block) - 1))
                continue
            are_digits = rng.random() < 0.4
            block = [rng.randrange(300, 2048)]
            for _ in range(rng.randint(3, 11)):
                block.append(rng.choice(self._digits) if are_digits or rng.random() < 0.3 else rng.randrange(7, 2048))
            blocks.append(block)
            row.add(block, [0.0] * len(block))
        return row

    def questions(self, rng: random.Random, stage: Stage) -> Row:
        """Draw a context and as many questions about it as the row holds."""
        share = rng.uniform(0.35, 0.7) if rng.random() < 0.8 else rng.uniform(0.7, 0.9)
        kinds: tuple[Kind, ...] = ("notes", "table", "mixed", "mixed")
        context = make_context(
            rng,
            tokens=int(stage.row_tokens * share) - 10,
            kind=rng.choice(kinds),
            questions=_MOST_QUESTIONS,
            count_tokens=self.count,
            split="train",
            is_alike=bool(stage.alike) and rng.random() < stage.alike,
        )
        row = Row()
        row.add([BOS], [0.0])
        placed = [self._passage(row, rng, stage, context, index) for index in range(len(context.passages))]
        for question in context.questions:
            if len(row.ids) >= stage.row_tokens:
                break
            self._question(row, rng, stage, question, placed)
        if stage.strange and rng.random() < stage.strange:
            has_strange_nouns = stage.strange_nouns and rng.random() < stage.strange_nouns
            others = self._other_words(rng) if has_strange_nouns else self._other_names(rng)
            row.ids = [others.get(token, token) for token in row.ids]
        return row

    def _other_names(self, rng: random.Random) -> dict[int, int]:
        """Exchange the tokens that only names and values have among themselves.

        What is equal stays equal, so that matching and copying are learnt for tokens that the corpus hardly has.
        """
        return dict(zip(self._free, rng.sample(self._free, len(self._free)), strict=True))

    def _other_words(self, rng: random.Random) -> dict[int, int]:
        """Exchange every word but those of the templates, so that a noun is found by what it equals, not by knowing it.

        A word's forms (capital, blank before it) go together, to those of another word.
        """
        found: dict[int, int] = {}
        for words in self._words:
            for ours, theirs in zip(words, rng.sample(words, len(words)), strict=True):
                found.update(zip(ours, theirs, strict=True))
        return found

    def _passage(self, row: Row, rng: random.Random, stage: Stage, context: Context, index: int) -> tuple[int, _Tokens]:
        passage = context.passages[index]
        tokens = _Tokens(self._tokenizer, passage.text + "\n")
        marker = DOC if context.has_document and index == 0 else NOTE
        weights = [0.1 if rng.random() < stage.context_share else 0.0 for _ in tokens.ids]
        row.starts.append(len(row.ids))
        start = row.add([marker, *tokens.ids], [0.0, *weights]) + 1
        for fact in passage.facts:
            self._look_around(row, start, tokens, fact, has_end=stage.binds_ends)
        return start, tokens

    def _look_around(self, row: Row, start: int, tokens: _Tokens, fact: Fact, *, has_end: bool) -> None:
        owners = tuple(start + tokens.after(span) for span in fact.owner_spans[-_LOOK_TARGETS:])
        end = [tokens.after(fact.value_span)] if has_end else []
        for token in [*tokens.of(fact.value_span), *end]:
            row.looks["owner"].append((start + token, owners))
            if fact.noun_span is not None:
                row.looks["noun"].append((start + token, (start + tokens.after(fact.noun_span),)))
            row.looks["via"].append((start + token, _REST))

    def _question(
        self, row: Row, rng: random.Random, stage: Stage, question: Question, placed: Sequence[tuple[int, _Tokens]]
    ) -> None:
        asked = _Tokens(self._tokenizer, f" {question.text}")
        answer = self._tokenizer.encode(f" {question.answer}", add_special_tokens=False).ids
        weight = 0.1 if rng.random() < 0.5 else 0.0
        row.starts.append(len(row.ids))
        start = row.add([USER, *asked.ids, ASSISTANT], [0.0, *([weight] * len(asked.ids)), 0.0]) + 1
        weights = [3.0, 3.0, *[1.0] * len(answer)][: len(answer) + 1]
        # Choosing is harder than copying on: most answers stop after their first tokens, to leave room for others.
        shown = [*answer, END] if rng.random() < stage.whole_answers else [*answer, END][:_FIRST_TOKENS]
        first = row.add(shown, weights[: len(shown)])
        span = Span(question.source.fact.value_span.start - 1, question.source.fact.value_span.end)
        context_start, context = placed[question.source.passage]
        source = [context_start + token for token in context.of(span)]
        for index in range(len(shown)):
            query = first + index - 1
            if question.owner_span is not None:
                row.looks["owner"].append((query, (start + asked.after(question.owner_span.moved(1)),)))
            row.looks["noun"].append((query, (start + asked.after(question.noun_span.moved(1)),)))
            link = via = _REST
            if question.via is not None and question.link_span is not None:
                link = (start + asked.after(question.link_span.moved(1)),)
                via = (self._end_of(question.via, placed),)
            row.looks["link"].append((query, link))
            row.looks["via"].append((query, via))
            # The token after the value tells that it ends; not every value is tokenised as its answer is.
            if len(source) == len(answer):
                target = (source[index] if index < len(source) else source[-1] + 1,)
                row.looks["first"].append((query, _REST if index else target))
                row.looks["next"].append((query, target if index else _REST))

    @staticmethod
    def _end_of(source: Source, placed: Sequence[tuple[int, _Tokens]]) -> int:
        start, tokens = placed[source.passage]
        return start + tokens.after(source.fact.value_span)


def _free_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that no template, label, noun or title has, and that are no digit, sign or special token."""
    kept = {token for text in fixed_texts() if text for token in _tokens_of(tokenizer, text)}
    return list(_word_tokens(tokenizer, kept))


def _words(tokenizer: Tokenizer) -> list[list[tuple[int, ...]]]:
    """Return all words but those of the templates, each as its forms' tokens; words of the same forms together."""
    kept = set[int]()
    for template in template_texts():
        for literal, *_ in Formatter().parse(template):
            kept.update(_tokens_of(tokenizer, literal) if literal.strip() else ())
    forms = dict[str, dict[str, int]]()
    for token in _word_tokens(tokenizer, kept):
        text = tokenizer.decode([token])
        word = text.strip()
        form = ("blank " if text.startswith(" ") else "") + ("capital" if word[0].isupper() else "small")
        forms.setdefault(word.lower(), {}).setdefault(form, token)
    alike = dict[tuple[str, ...], list[tuple[int, ...]]]()
    for found in forms.values():
        shapes = tuple(sorted(found))
        alike.setdefault(shapes, []).append(tuple(found[shape] for shape in shapes))
    return list(alike.values())


def _tokens_of(tokenizer: Tokenizer, text: str) -> set[int]:
    forms = (text, f" {text}", capitalised(text), f" {capitalised(text)}")
    return {token for form in forms for token in tokenizer.encode(form, add_special_tokens=False).ids}


def _word_tokens(tokenizer: Tokenizer, kept: set[int]) -> Iterator[int]:
    """Yield the tokens that have a letter, in their order, but special ones, points before a letter, and `kept`."""
    for text, token in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        has_letter = any(map(str.isalpha, tokenizer.decode([token])))
        if token >= END_OF_SPECIAL and token not in kept and not text.startswith(".") and has_letter:
            yield token


def _gaps(row: Row, rng: random.Random, tokens: int, positions: int) -> list[int]:
    """Return positions with up to three jumps at the starts of passages and questions, all below `positions`."""
    chosen = sorted(rng.sample(row.starts, min(len(row.starts), rng.randint(1, 3))))
    total = rng.randint(0, max(0, positions - tokens))
    places = dict(zip(chosen, sorted(rng.randint(0, total) for _ in chosen), strict=True))
    shift, found = 0, []
    for index in range(len(row.ids)):
        shift = places.get(index, shift)
        found.append(index + shift)
    return found


def collated(rows: Sequence[Row], rng: random.Random, stage: Stage, *, positions: int) -> Batch:
    """Cut and pad rows to one length; positions jump in some where the stage has gaps."""
    tokens = stage.row_tokens
    ids, weights = torch.zeros(len(rows), tokens, dtype=torch.long), torch.zeros(len(rows), tokens)
    places = torch.arange(tokens).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        length = min(tokens, len(row.ids))
        ids[index, :length] = torch.tensor(row.ids[:length])
        weights[index, :length] = torch.tensor(row.weights[:length])
        if stage.has_gaps and row.starts and rng.random() < 0.5:
            places[index, :length] = torch.tensor(_gaps(row, rng, tokens, positions)[:length])
    looks = {aim: _collated_looks([row.looks[aim] for row in rows], tokens) for aim in AIMS}
    return Batch(ids, weights, places, looks)


def _collated_looks(rows: Sequence[list[tuple[int, tuple[int, ...]]]], tokens: int) -> tuple[Tensor, Tensor]:
    kept = [[(query, aims) for query, aims in row if query < tokens] for row in rows]
    longest = max(1, *(len(row) for row in kept)) if kept else 1
    queries = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest, _LOOK_TARGETS), -1)
    for index, row in enumerate(kept):
        if row:
            queries[index, : len(row)] = torch.tensor([query for query, _ in row])
            padded = [[*aims, *[-1] * (_LOOK_TARGETS - len(aims))] for _, aims in row]
            targets[index, : len(row)] = torch.tensor(padded)
    return queries, targets
