from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("splitinfer", "server", "trust_models")
BYTE_SIDE = (
    "splitinfer.attestation",
    "splitinfer.egress",
    "splitinfer.errors",
    "splitinfer.handoff",
    "splitinfer.home",
    "splitinfer.homomorphic",
    "splitinfer.masking",
    "splitinfer.merkle",
    "splitinfer.noise",
    "splitinfer.placement",
    "splitinfer.receive",
    "splitinfer.rounds",
    "splitinfer.schedule",
    "splitinfer.sealing",
    "splitinfer.segments",
    "splitinfer.selector",
    "splitinfer.store",
    "splitinfer.transport",
    "trust_models",
)
PROOFS = {
    "VerifiedRecipient": "splitinfer/attestation/appraise.py",
    "PublicPrefix": "splitinfer/store/prefix.py",
    "NoisedEmbeddings": "splitinfer/noise/embedding.py",
    "NoisedSlabs": "splitinfer/noise/clipping.py",
    "ReleasedTransfer": "splitinfer/egress/gate.py",
    "VerifiedTransfer": "splitinfer/receive/intake.py",
}
MODULES = sorted(path for package in PRODUCT for path in (ROOT / package).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def called(path: Path) -> Iterator[str]:
    """Yield the last name of everything that is called."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of every module that is imported."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_product_was_found() -> None:
    assert len(MODULES) > 50
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PRODUCT)


@pytest.mark.parametrize(("name", "maker"), PROOFS.items())
def test_a_proof_is_made_in_one_module(name: str, maker: str) -> None:
    assert [named(path) for path in MODULES if name in called(path)] == [maker]


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_goes_by_its_own_name_everywhere(name: str) -> None:
    """An alias, a subclass, `replace` on one or its `__new__` would be constructors that no search finds."""
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != name or alias.asname is None for alias in node.names), named(path)
            if isinstance(node, ast.ClassDef):
                assert name not in {ast.unparse(base).rpartition(".")[2] for base in node.bases}, named(path)
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Name):
                assert node.value.id != name, named(path)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name:
                assert node.attr not in {"__new__", "__init__"}, named(path)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_product_module_asserts_unpickles_or_leaves_work_undone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert)
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.load", "numpy.load", "np.load"}
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not forbidden & {name.partition(".")[0] for name in imported(path)}
    assert not forbidden & {name.rpartition(".")[2] for name in imported(path)}
    assert "torch.load" not in set(imported(path))
    assert not re.search(r"\bTODO\b|\bFIXME\b|NotImplementedError", text)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nothing_evaluates_text_as_code(path: Path) -> None:
    names = {
        node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not names & {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[-2] != "embedded"], ids=named)
def test_every_listed_name_is_there(path: Path) -> None:
    defined: set[str] = set()
    listed: list[str] = []
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.If):
            inner = [child for child in ast.walk(node) if isinstance(child, ast.ImportFrom)]
            defined |= {alias.asname or alias.name for child in inner for alias in child.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            if "__all__" in names and node.value is not None:
                listed += ast.literal_eval(node.value)
            defined |= names
    assert set(listed) <= defined
    assert len(listed) == len(set(listed))


def test_only_the_server_imports_a_web_framework() -> None:
    found = {named(path).partition("/")[0] for path in MODULES if {"fastapi", "starlette", "uvicorn"} & _tops(path)}
    assert found == {"server"}


def test_the_product_does_not_import_its_tests() -> None:
    for path in MODULES:
        assert not {"tests", "benchmarks", "examples", "pytest", "hypothesis"} & _tops(path), named(path)


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def byte_side() -> list[str]:
    """Return every module of the byte side, packages and their modules."""
    names = []
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if any(name == top or name.startswith(f"{top}.") for top in BYTE_SIDE):
            names.append(name)
    return names


LOADED = """
import sys
for name in sys.argv[1:]:
    __import__(name)
heavy = {"torch", "transformers", "tokenizers", "safetensors", "fastapi", "uvicorn"}
print(" ".join(sorted(heavy & set(sys.modules))))
"""


def loaded_after(*names: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *names], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout.strip()


def test_the_byte_side_reaches_neither_torch_nor_transformers() -> None:
    names = byte_side()
    assert {name for name in BYTE_SIDE if name in names} == set(BYTE_SIDE)
    assert loaded_after(*names) == ""


def test_importing_splitinfer_loads_neither_torch_nor_transformers() -> None:
    assert loaded_after("splitinfer") == ""


def test_the_check_of_a_fresh_interpreter_can_fail() -> None:
    assert loaded_after("safetensors") == "safetensors"
