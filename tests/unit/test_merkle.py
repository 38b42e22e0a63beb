"""The tree against the public vectors, against itself, and against wrong proofs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import BrokenLogError
from splitinfer.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
VECTORS = SHARED / "evidence" / "merkle-tlog" / "transparency-dev_merkle_rfc6962_vectors.json"
LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def _bytes(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def _judge(kind: str, case: dict) -> None:
    proof = [_bytes(node) for node in case["proof"] or []]
    if kind == "inclusion":
        verify_inclusion(
            leaf_index=case["leafIdx"],
            tree_size=case["treeSize"],
            leaf_hash=_bytes(case["leafHash"]),
            proof=proof,
            root=_bytes(case["root"]),
        )
    else:
        verify_consistency(
            size1=case["size1"],
            size2=case["size2"],
            root1=_bytes(case["root1"]),
            root2=_bytes(case["root2"]),
            proof=proof,
        )


@pytest.mark.skipif(not VECTORS.exists(), reason="the public vectors are not beside this checkout (../shared/evidence)")
@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_public_vectors_are_all_judged_rightly(kind: str) -> None:
    cases = json.loads(VECTORS.read_text())[kind]
    assert len(cases) == 98
    wrong = []
    for case in cases:
        try:
            _judge(kind, case)
            accepted = True
        except BrokenLogError:
            accepted = False
        if accepted == case["wantErr"]:
            wrong.append(case["file"])
    assert wrong == []


def test_small_roots_follow_the_definition() -> None:
    a, b, c = LEAVES[:3]
    assert root_of([]) == EMPTY_ROOT
    assert root_of([a]) == a
    assert root_of([a, b, c]) == node_hash(node_hash(a, b), c)


def _recursive_root(leaves: list[bytes]) -> bytes:
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(_recursive_root(leaves[:split]), _recursive_root(leaves[split:]))


@pytest.mark.parametrize("size", range(40))
def test_frontier_has_the_root_of_the_recursive_definition(size: int) -> None:
    frontier = Frontier(LEAVES[:size])
    assert frontier.root() == _recursive_root(LEAVES[:size])
    assert frontier.size == size
    again = Frontier.from_bytes(frontier.to_bytes())
    again.append(LEAVES[size])
    assert again.root() == _recursive_root(LEAVES[: size + 1])
    assert frontier.size == size


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_made_proofs_verify_and_changed_ones_do_not(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(LEAVES, index, size)
    claim = {"leaf_index": index, "tree_size": size, "leaf_hash": LEAVES[index], "root": root_of(LEAVES[:size])}
    verify_inclusion(**claim, proof=proof)
    wrong = data.draw(st.sampled_from(["leaf", "longer", *(["shorter", "changed"] if proof else [])]))
    if wrong == "leaf":
        claim["leaf_hash"] = leaf_hash(b"another")
    bad = {
        "leaf": proof,
        "longer": [*proof, LEAVES[0]],
        "shorter": proof[:-1],
        "changed": [leaf_hash(b"another"), *proof[1:]],
    }[wrong]
    with pytest.raises(BrokenLogError):
        verify_inclusion(**claim, proof=bad)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_made_consistency_proofs_verify_and_forks_do_not(data: st.DataObject) -> None:
    size2 = data.draw(st.integers(1, 40))
    size1 = data.draw(st.integers(1, size2))
    proof = consistency_proof(LEAVES, size1, size2)
    roots = {"root1": root_of(LEAVES[:size1]), "root2": root_of(LEAVES[:size2])}
    verify_consistency(size1=size1, size2=size2, **roots, proof=proof)
    fork = [*LEAVES[: size1 - 1], leaf_hash(b"rewritten")]
    with pytest.raises(BrokenLogError):
        verify_consistency(size1=size1, size2=size2, root1=root_of(fork), root2=roots["root2"], proof=proof)
    with pytest.raises(BrokenLogError):
        verify_consistency(size1=size1, size2=size2, **roots, proof=[*proof, LEAVES[0]])


def test_frontier_of_another_length_is_refused() -> None:
    with pytest.raises(BrokenLogError):
        Frontier.from_bytes(Frontier(LEAVES[:3]).to_bytes()[:-1])


def test_leaf_that_is_no_hash_is_refused() -> None:
    with pytest.raises(BrokenLogError):
        Frontier([b"short"])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 41)])
def test_proof_of_a_leaf_outside_the_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(BrokenLogError):
        inclusion_proof(LEAVES, index, size)


@pytest.mark.parametrize(("size1", "size2"), [(0, 3), (4, 3), (1, 41)])
def test_proof_from_an_empty_or_larger_tree_is_refused(size1: int, size2: int) -> None:
    with pytest.raises(BrokenLogError):
        consistency_proof(LEAVES, size1, size2)
