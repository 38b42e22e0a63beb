"""Looks for private things in captured bytes: words, runs of token ids, windows of K/V rows, names; in many forms.

A needle is a `kind` (what and in which form) with its byte strings; `find` names the kinds that occur. What the
scanner can find is proved on a clear twin (`tests/support/clear_twin.py`).
"""

from __future__ import annotations

import base64
import itertools
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitinfer.cache.snapshot import CacheSnapshot

RUN_TOKENS = 4
WINDOW_BYTES = 32
TOKEN_FORMS = {"u16": "H", "u32": "I", "i64": "q"}
BYTE_ORDERS = {"little": "<", "big": ">"}
KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX_BYTES = 8


@dataclass
class Scanner:
    """Needles by kind; strings of one length are looked up together, shorter ones one by one."""

    kinds: set[str] = field(default_factory=set)
    _short: list[tuple[str, bytes]] = field(default_factory=list, repr=False)
    _long: dict[int, dict[bytes, str]] = field(default_factory=lambda: defaultdict(dict), repr=False)
    _heads: dict[int, np.ndarray[tuple[int], np.dtype[np.uint64]]] = field(default_factory=dict, repr=False)

    def add_words(self, words: Iterable[str], *, what: str = "text") -> None:
        """Add words as UTF-8 in any case, UTF-16, hex and base64."""
        for word in words:
            for form, needle in _word_forms(word):
                self._add(f"{what} {form}", needle)

    def add_tokens(self, token_ids: Sequence[int], *, what: str = "tokens") -> None:
        """Add every run of four ids in six binary forms and as JSON."""
        for run in zip(*(token_ids[at:] for at in range(RUN_TOKENS)), strict=False):
            for (name, code), (order, mark) in itertools.product(TOKEN_FORMS.items(), BYTE_ORDERS.items()):
                self._add(f"{what} {name} {order}", struct.pack(f"{mark}{RUN_TOKENS}{code}", *run))
            for form, comma in (("JSON", ", "), ("compact JSON", ",")):
                self._add(f"{what} {form}", comma.join(map(str, run)).encode())

    def add_cache(self, snapshot: CacheSnapshot, *, what: str = "K/V") -> None:
        """Add every 32-byte window of every row of every layer, as computed and cast."""
        for name, dtype in KV_DTYPES.items():
            for window in _windows(snapshot, dtype):
                self._add(f"{what} {name}", window)

    def add_names(self, names: Iterable[str], *, what: str = "name") -> None:
        """Add names as they are written."""
        for name in names:
            self._add(what, name.encode())

    def find(self, data: bytes | bytearray) -> set[str]:
        """Return the kinds of which a needle occurs."""
        data = bytes(data)
        lowered = data.lower()
        found = {kind for kind, needle in self._short if needle in (lowered if kind.endswith("any case") else data)}
        if self._long and len(data) >= PREFIX_BYTES:
            found |= self._find_long(data)
        return found

    def _find_long(self, data: bytes) -> set[str]:
        # All offsets at once: a needle's first eight bytes as one number, then the whole of it where that occurs.
        bytes_ = np.frombuffer(data, dtype=np.uint8)
        numbers = np.lib.stride_tricks.sliding_window_view(bytes_, PREFIX_BYTES).copy().view(np.uint64).ravel()
        found = set()
        for size, needles in self._long.items():
            for at in np.flatnonzero(_is_among(numbers, self._sorted_heads(size))).tolist():
                kind = needles.get(data[at : at + size])
                found |= {kind} if kind else set()
        return found

    def _sorted_heads(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        needles = self._long[size]
        if size not in self._heads:
            joined = b"".join(needle[:PREFIX_BYTES] for needle in needles)
            self._heads[size] = np.unique(np.frombuffer(joined, dtype=np.uint64))
        return self._heads[size]

    def find_in_files(self, folder: Path) -> dict[str, set[str]]:
        """Search every file below a folder, and every name; return what was found by relative path."""
        found = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            kinds = self.find(name.encode()) | (self.find(path.read_bytes()) if path.is_file() else set())
            if kinds:
                found[name] = kinds
        return found

    def _add(self, kind: str, needle: bytes) -> None:
        self.kinds.add(kind)
        self._heads.clear()
        if len(needle) < PREFIX_BYTES or kind.endswith(("any case", "JSON", "name")):
            self._short.append((kind, needle.lower() if kind.endswith("any case") else needle))
        elif self._long[len(needle)].setdefault(needle, kind) != kind:
            self._short.append((kind, needle))


def _is_among(
    numbers: np.ndarray[Any, np.dtype[np.uint64]], ordered: np.ndarray[Any, np.dtype[np.uint64]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    places = np.searchsorted(ordered, numbers)
    places[places == len(ordered)] = 0
    return np.asarray(ordered[places] == numbers)


def _word_forms(word: str) -> Iterator[tuple[str, bytes]]:
    plain = word.encode()
    yield "UTF-8 any case", plain
    yield "UTF-16 little", word.encode("utf-16-le")
    yield "UTF-16 big", word.encode("utf-16-be")
    yield "hex any case", plain.hex().encode()
    for shift in range(3):
        # The characters that depend on this word alone, whatever stands before and after it.
        encoded = base64.b64encode(b"\x00" * shift + plain)
        yield "base64", encoded[-(-shift * 8 // 6) : (shift + len(plain)) * 8 // 6]


def _windows(snapshot: CacheSnapshot, dtype: torch.dtype) -> Iterator[bytes]:
    step = dtype.itemsize
    for layer in snapshot.layers:
        for part in layer.values():
            rows = part.to(dtype).reshape(-1, part.shape[-1]).contiguous().view(torch.uint8).numpy()
            for row in rows:
                data = row.tobytes()
                for at in range(0, len(data) - WINDOW_BYTES + 1, step):
                    window = data[at : at + WINDOW_BYTES]
                    if len(set(window)) > 2:
                        yield window
