"""The Merkle tree of RFC 6962 over SHA-256: leaf hashes to roots, proofs and their checks; either side, no IO.

A tree is known by the hashes of its leaves, 32 bytes each, in order. `Frontier` holds what an append-only log needs
to keep: one hash for every complete subtree, so at most 64 hashes for any size.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from splitinfer.errors import BrokenLogError

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "Frontier",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "root_of",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
_SIZE_BYTES = 8


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of one leaf (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes; SHA-256 of nothing for the empty tree."""
    return Frontier(leaf_hashes).root()


class Frontier:
    """The right edge of an append-only tree: the roots of its complete subtrees, largest first."""

    __slots__ = ("_nodes", "_size")

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._nodes: list[bytes] = []
        self._size = 0
        for leaf in leaf_hashes:
            self.append(leaf)

    @property
    def size(self) -> int:
        """Return the number of leaves."""
        return self._size

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash; raises BrokenLogError where it is not 32 bytes."""
        node = _checked_hash(leaf, "leaf hash")
        self._size += 1
        # A leaf completes one subtree for every trailing zero bit of the new size.
        for _ in range((self._size & -self._size).bit_length() - 1):
            node = node_hash(self._nodes.pop(), node)
        self._nodes.append(node)

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        if not self._nodes:
            return EMPTY_ROOT
        root = self._nodes[-1]
        for node in reversed(self._nodes[:-1]):
            root = node_hash(node, root)
        return root

    def copy(self) -> Frontier:
        """Return an independent frontier of the same tree."""
        return Frontier.from_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the size (8 bytes, big-endian), then the hash of every complete subtree, largest first."""
        return self._size.to_bytes(_SIZE_BYTES, "big") + b"".join(self._nodes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """Read what `to_bytes` wrote; raises BrokenLogError where the length does not fit the size."""
        size = int.from_bytes(data[:_SIZE_BYTES], "big")
        if len(data) != _SIZE_BYTES + HASH_BYTES * size.bit_count():
            raise BrokenLogError(f"a saved frontier of {size} leaves cannot have {len(data)} bytes")
        frontier = cls()
        frontier._size = size
        frontier._nodes = [data[at : at + HASH_BYTES] for at in range(_SIZE_BYTES, len(data), HASH_BYTES)]
        return frontier


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int, size: int) -> list[bytes]:
    """Return the path from leaf `index` to the root of the first `size` leaves (RFC 6962 section 2.1.1)."""
    if not 0 <= index < size <= len(leaf_hashes):
        raise BrokenLogError(f"no leaf {index} in the first {size} of {len(leaf_hashes)} leaves")
    return _path(leaf_hashes, index, 0, size)


def _path(leaves: Sequence[bytes], index: int, start: int, stop: int) -> list[bytes]:
    if stop - start == 1:
        return []
    middle = start + _split(stop - start)
    if index < middle:
        return [*_path(leaves, index, start, middle), root_of(leaves[middle:stop])]
    return [*_path(leaves, index, middle, stop), root_of(leaves[start:middle])]


def consistency_proof(leaf_hashes: Sequence[bytes], size1: int, size2: int) -> list[bytes]:
    """Return the proof that the first `size2` leaves extend the first `size1` (RFC 6962 section 2.1.2)."""
    if not 0 < size1 <= size2 <= len(leaf_hashes):
        raise BrokenLogError(f"no consistency proof from {size1} to {size2} of {len(leaf_hashes)} leaves")
    return _subproof(leaf_hashes, size1, 0, size2, whole=True)


def _subproof(leaves: Sequence[bytes], size1: int, start: int, stop: int, *, whole: bool) -> list[bytes]:
    if size1 == stop:
        return [] if whole else [root_of(leaves[start:stop])]
    middle = start + _split(stop - start)
    if size1 <= middle:
        return [*_subproof(leaves, size1, start, middle, whole=whole), root_of(leaves[middle:stop])]
    return [*_subproof(leaves, size1, middle, stop, whole=False), root_of(leaves[start:middle])]


def _split(count: int) -> int:
    """Return the largest power of two smaller than `count`."""
    return 1 << (count - 1).bit_length() - 1


def verify_inclusion(*, leaf_index: int, tree_size: int, leaf_hash: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check an inclusion proof (RFC 9162 section 2.1.3.2); raises BrokenLogError where it does not hold."""
    if not 0 <= leaf_index < tree_size:
        raise BrokenLogError(f"leaf {leaf_index} is not in a tree of {tree_size} leaves")
    node, position, last = _checked_hash(leaf_hash, "leaf hash"), leaf_index, tree_size - 1
    for sibling in _checked_proof(proof):
        if last == 0:
            raise BrokenLogError("the inclusion proof is longer than the tree is deep")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            position, last = _skip_left_edge(position, last)
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise BrokenLogError("the inclusion proof is shorter than the tree is deep")
    _require_equal(node, root, "the inclusion proof leads to another root")


def verify_consistency(*, size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check a consistency proof (RFC 9162 section 2.1.4.2); raises BrokenLogError where it does not hold.

    Nothing is consistent with an empty tree: its root commits to nothing, so `size1` 0 is refused.
    """
    if not 0 < size1 <= size2:
        raise BrokenLogError(f"no tree of {size2} leaves can be shown to extend one of {size1}")
    hashes = _checked_proof(proof)
    if size1 == size2:
        _require_equal(root1, root2, "two trees of one size have different roots")
        if hashes:
            raise BrokenLogError("a consistency proof between trees of one size must be empty")
        return
    # A complete older tree is itself the first node of the path.
    path = [root1, *hashes] if size1 & (size1 - 1) == 0 else list(hashes)
    if not path or not hashes:
        raise BrokenLogError("the consistency proof is empty")
    position, last = size1 - 1, size2 - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    older = newer = _checked_hash(path[0], "older root")
    for sibling in path[1:]:
        if last == 0:
            raise BrokenLogError("the consistency proof is longer than the tree is deep")
        if position & 1 or position == last:
            older, newer = node_hash(sibling, older), node_hash(sibling, newer)
            position, last = _skip_left_edge(position, last)
        else:
            newer = node_hash(newer, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise BrokenLogError("the consistency proof is shorter than the tree is deep")
    _require_equal(older, root1, "the consistency proof does not start from the older root")
    _require_equal(newer, root2, "the consistency proof does not lead to the newer root")


def _skip_left_edge(position: int, last: int) -> tuple[int, int]:
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _checked_hash(value: bytes, name: str) -> bytes:
    if len(value) != HASH_BYTES:
        raise BrokenLogError(f"a {name} must have {HASH_BYTES} bytes, not {len(value)}")
    return value


def _checked_proof(proof: Sequence[bytes]) -> Sequence[bytes]:
    for node in proof:
        _checked_hash(node, "proof hash")
    return proof


def _require_equal(found: bytes, expected: bytes, message: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise BrokenLogError(message)
