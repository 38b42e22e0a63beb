"""A prompt's one slab, token ids or embedding rows, to bytes and back to what was checked; both sides."""

from __future__ import annotations

from splitinfer import schedule
from splitinfer.errors import LayoutMismatchError
from splitinfer.sealing.manifest import RequestManifest

__all__ = ["TOKEN_BYTES", "RowSink", "TokenSink", "slab_tokens", "token_slab"]

TOKEN_BYTES = 4


def slab_tokens(manifest: RequestManifest) -> int:
    """Return how many ids, padding included, the token slab of a prefill request has: the new ones, or all public."""
    padded, base = manifest.tokens.padded, manifest.session.base_tokens
    return (schedule.pad_tokens(padded) if base else padded) if manifest.public else padded - base


def token_slab(token_ids: tuple[int, ...], *, padded_tokens: int) -> bytes:
    """Encode token ids as big-endian 32-bit integers, padded with zeros."""
    ids = b"".join(token.to_bytes(TOKEN_BYTES, "big") for token in token_ids)
    return ids.ljust(padded_tokens * TOKEN_BYTES, b"\x00")


class TokenSink:
    """Receives the token slab and yields a tuple of ids below the vocabulary's size."""

    def __init__(self, *, true_tokens: int, padded_tokens: int, vocabulary: int) -> None:
        self._data = bytearray(padded_tokens * TOKEN_BYTES)
        self._true = true_tokens
        self._vocabulary = vocabulary

    def slab(self) -> memoryview:
        """Return the memory of the only slab."""
        return memoryview(self._data)

    def finish(self) -> tuple[int, ...]:
        """Return the true tokens; raises LayoutMismatchError for non-zero padding or an unknown id."""
        used = self._true * TOKEN_BYTES
        ids = tuple(int.from_bytes(self._data[i : i + TOKEN_BYTES], "big") for i in range(0, used, TOKEN_BYTES))
        has_bad_padding = any(self._data[used:])
        self.wipe()
        if has_bad_padding or any(token >= self._vocabulary for token in ids):
            raise LayoutMismatchError("the token slab holds ids that the model does not have, or non-zero padding")
        return ids

    def wipe(self) -> None:
        """Overwrite the ids."""
        self._data[:] = bytes(len(self._data))


class RowSink:
    """Receives the slab of a prompt that comes as embedding rows, and yields the bytes of the true ones."""

    def __init__(self, *, true_tokens: int, padded_tokens: int, row_bytes: int) -> None:
        self._data = bytearray(padded_tokens * row_bytes)
        self._used = true_tokens * row_bytes

    def slab(self) -> memoryview:
        """Return the memory of the only slab."""
        return memoryview(self._data)

    def finish(self) -> bytes:
        """Return the true rows; raises LayoutMismatchError for non-zero padding."""
        rows, has_bad_padding = bytes(self._data[: self._used]), any(self._data[self._used :])
        self.wipe()
        if has_bad_padding:
            raise LayoutMismatchError("the slab of rows holds non-zero padding")
        return rows

    def wipe(self) -> None:
        """Overwrite the rows."""
        self._data[:] = bytes(len(self._data))
