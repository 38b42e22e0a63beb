"""Traffic analysis: sizes and gaps of what crosses the network -> prompt length, and topic by a trained classifier.

Threat: an observer of packets between device and cloud, who reads no byte of them. Sources: "What Was Your Prompt",
"Whisper Leak" (arXiv 2511.03675). The length is regressed on sizes and times; the classifier is a softmax regression on
the same features, trained on transcripts of prompts that are not those it is tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch

from splitinfer.errors import UsageError

__all__ = ["FEATURES", "Message", "TopicClassifier", "Transcript", "features", "length_error", "unpadded"]

Direction = Literal["up", "down"]
FEATURES = (
    "bytes_up",
    "bytes_down",
    "messages_up",
    "messages_down",
    "seconds_to_reply",
    "seconds_in_all",
    "mean_gap",
    "deviation_of_gaps",
    "largest_gap",
    "spaced_messages",
)
_SPACED = 0.2
_EPOCHS = 300


@dataclass(frozen=True, slots=True)
class Message:
    """One piece that crossed: which way, how long, and when, in seconds from the first."""

    direction: Direction
    size_bytes: int
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that an observer of the network notes of one run, in order."""

    messages: tuple[Message, ...] = field(repr=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes in order, those of replies negative."""
        return tuple(x.size_bytes if x.direction == "up" else -x.size_bytes for x in self.messages)

    def bytes(self, direction: Direction) -> int:
        """Return the bytes that went one way."""
        return sum(message.size_bytes for message in self.messages if message.direction == direction)


def features(transcript: Transcript) -> torch.Tensor:
    """Return the numbers of `FEATURES`; zeros for a run in which nothing crossed."""
    messages = transcript.messages
    if not messages:
        return torch.zeros(len(FEATURES), dtype=torch.float64)
    down = [message for message in messages if message.direction == "down"]
    last_up = max((message.at_seconds for message in messages if message.direction == "up"), default=0.0)
    after = [message.at_seconds for message in down if message.at_seconds >= last_up]
    gaps = torch.tensor([b - a for a, b in pairwise(after)] or [0.0], dtype=torch.float64)
    largest = float(gaps.max())
    values = (
        transcript.bytes("up"),
        transcript.bytes("down"),
        len(messages) - len(down),
        len(down),
        after[0] - last_up if after else 0.0,
        messages[-1].at_seconds - messages[0].at_seconds,
        float(gaps.mean()),
        float(gaps.std(correction=0)),
        largest,
        # Frames that waited for a token stand apart; padding comes in one burst.
        int((gaps > _SPACED * largest).sum()) if largest > 0 else 0,
    )
    return torch.tensor(values, dtype=torch.float64)


def unpadded(transcript: Transcript, *, bytes_up: int, frames: int) -> Transcript:
    """Return what the observer of a decode would have noted without padding: these bytes up, and so many frames down.

    `bytes_up` is the request's true size. For comparison only: the product always pads.
    """
    largest = max((x.size_bytes for x in transcript.messages if x.direction == "up"), default=0)
    kept: list[Message] = []
    frame_bytes = min((x.size_bytes for x in transcript.messages if x.direction == "down"), default=0)
    seen = 0
    for message in transcript.messages:
        if message.direction == "up":
            is_body = message.size_bytes == largest
            kept.append(Message("up", bytes_up if is_body else message.size_bytes, message.at_seconds))
        else:
            seen += message.size_bytes > frame_bytes
            if seen <= frames:
                kept.append(message)
    return Transcript(tuple(kept))


class TopicClassifier:
    """A softmax regression on standardised features and their logarithms; trained once, by gradient descent."""

    def __init__(self, transcripts: Sequence[Transcript], topics: Sequence[str], *, seed: int = 0) -> None:
        if len(transcripts) != len(topics) or len(set(topics)) < 2:
            raise UsageError("a classifier needs a topic for every transcript, and at least two topics")
        self.topics = tuple(sorted(set(topics)))
        inputs = _inputs(transcripts)
        self._mean, self._deviation = inputs.mean(0), inputs.std(0, correction=0).clamp_min(1e-9)
        labels = torch.tensor([self.topics.index(topic) for topic in topics])
        torch.manual_seed(seed)
        self._layer = torch.nn.Linear(inputs.shape[1], len(self.topics), dtype=torch.float64)
        self._train((inputs - self._mean) / self._deviation, labels)

    def predict(self, transcripts: Sequence[Transcript]) -> list[str]:
        """Return the most likely topic of each."""
        with torch.no_grad():
            scores = self._layer((_inputs(transcripts) - self._mean) / self._deviation)
        return [self.topics[place] for place in scores.argmax(1).tolist()]

    def _train(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimiser = torch.optim.AdamW(self._layer.parameters(), lr=0.05, weight_decay=1e-2)
        for _ in range(_EPOCHS):
            optimiser.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(self._layer(inputs), labels))
            optimiser.step()


def length_error(
    known: Sequence[tuple[Transcript, int]], tested: Sequence[tuple[Transcript, int]], *, neighbours: int = 3
) -> float:
    """Return the mean absolute error, in tokens, of a guess from the nearest transcripts of known length."""
    if not known or not tested:
        raise UsageError("lengths are guessed from transcripts of known length; give some of both")
    inputs = _inputs([transcript for transcript, _ in known])
    mean, deviation = inputs.mean(0), inputs.std(0, correction=0).clamp_min(1e-9)
    lengths = torch.tensor([length for _, length in known], dtype=torch.float64)
    targets = (_inputs([transcript for transcript, _ in tested]) - mean) / deviation
    nearest = torch.cdist(targets, (inputs - mean) / deviation).topk(min(neighbours, len(known)), largest=False)
    guesses = lengths[nearest.indices].mean(1)
    truth = torch.tensor([length for _, length in tested], dtype=torch.float64)
    return float((guesses - truth).abs().mean())


def _inputs(transcripts: Sequence[Transcript]) -> torch.Tensor:
    plain = torch.stack([features(transcript) for transcript in transcripts])
    return torch.cat([plain, plain.clamp_min(1e-6).log()], 1)
