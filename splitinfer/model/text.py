"""Incremental text: token ids one by one -> text that will not change any more; both sides.

The text is exactly what the tokenizer decodes from all ids at once, special tokens skipped, except that leading
whitespace is dropped once and that a stop string ends the text before it. It depends on the ids and stop strings
alone: the cloud, which stops decoding, and the device, which shows the text, cut at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["TextStream", "Tokenizer"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """The one method of a transformers tokenizer that is needed here."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str | list[str]:
        """Return the text of the ids."""


class TextStream:
    """Turns token ids into text as they come, holding back what may still change.

    Held back are incomplete UTF-8 sequences and any suffix that could be the start of a stop string. Where two stop
    strings overlap, the one that is complete first ends the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Text of ids[:_read] is out; decoding starts again at _context, so that the cost does not grow.
        self._context = 0
        self._read = 0
        self._held = ""
        self._text = ""
        self._has_started = False
        self._stopped = False

    @property
    def text(self) -> str:
        """Return all text that was released so far."""
        return self._text

    @property
    def stopped(self) -> bool:
        """Return whether a stop string has appeared; nothing is released from then on."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Add one token and return the text that it made safe, possibly empty."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back; no token may follow."""
        text = self._new_text()
        self._read = len(self._ids)
        released = self._release(text)
        if not self._stopped:
            released += self._held
            self._text += self._held
        self._held = ""
        return released

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)

    def _release(self, text: str) -> str:
        if self._stopped:
            return ""
        if not self._has_started:
            text = text.lstrip()
            self._has_started = bool(text)
        self._held += text
        cut = self._stop_start()
        self._stopped = cut is not None
        safe = len(self._held) - self._possible_stop_length() if cut is None else cut
        released, self._held = self._held[:safe], "" if self._stopped else self._held[safe:]
        self._text += released
        return released

    def _stop_start(self) -> int | None:
        """Return where the stop string that is complete first starts; of two that end together, the longer."""
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _possible_stop_length(self) -> int:
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
