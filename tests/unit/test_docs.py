"""The documents say what the code does: paths, modes, commands, codes, numbers, links."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import splitinfer
from server.settings import ServerSettings, make_settings
from splitinfer import errors, schedule
from splitinfer.attestation import keyset
from splitinfer.cli.main import build_parser
from splitinfer.receive import intake, recipient
from splitinfer.receive.checks import CHECKS
from splitinfer.sealing import frames, receipt, stream, transfer
from trust_models.modes import MODES
from trust_models.policy import load_builtin
from trust_models.values import MAX_VERIFY_ROWS

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TOP_FOLDERS = ("splitinfer", "server", "trust_models", "tests", "docs", "benchmarks", "tools", "examples")
FUTURE_WORDS = ("attested",)
MACHINE_PATHS = re.compile(r"(?<![\w.~$])/(work|tmp|root|home|Users|mnt)/")
FOLDERS = "|".join(TOP_FOLDERS)
PATHS = re.compile(rf"(?<![\w./~-])((?:{FOLDERS})/(?:[\w./-]*\w\.(?:py|md|toml|json)\b|(?:[\w.-]+/)*(?=`)))")


def text(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def named(doc: Path) -> str:
    return str(doc.relative_to(ROOT))


def table(document: str, first_cell: str) -> list[list[str]]:
    """The rows of the table whose head starts with this cell."""
    lines = iter(text(document).splitlines())
    for line in lines:
        if line.startswith(f"| {first_cell} |"):
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        if not set(line) <= set("|- :"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return rows


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fenced(document: str, language: str = "") -> list[str]:
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text(document), re.S | re.M)
    return [body for found, body in blocks if found == language]


def without_fences(document: str | Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text(document), flags=re.S | re.M)


def tree() -> list[type[errors.SplitInferError]]:
    return [error for error in errors._tree(errors.SplitInferError) if error.__module__ == errors.__name__]


def codes() -> set[str]:
    return {error.code for error in tree()}


CLAIMS = table("threat_model.md", "#")


def test_the_claims_are_numbered_rows_of_seven_cells() -> None:
    assert [row[0] for row in CLAIMS] == [f"C{number}" for number in range(1, len(CLAIMS) + 1)]
    assert all(len(row) == 7 and all(row) for row in CLAIMS)


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row[0])
def test_every_claim_names_modules_and_tests_that_exist(row: list[str]) -> None:
    modules, tests = ticked(row[3]), ticked(row[4])
    assert modules
    assert all((ROOT / path).is_file() and path.split("/")[0] in TOP_FOLDERS[:3] for path in modules)
    assert tests
    missing = [path for path in tests if not (ROOT / path).is_file() or "def test_" not in text(path)]
    assert not missing


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row[0])
def test_every_claim_is_of_known_modes(row: list[str]) -> None:
    assert ticked(row[2])
    assert set(ticked(row[2])) <= {mode.value for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_claim(mode: str) -> None:
    assert any(mode in ticked(row[2]) for row in CLAIMS)


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_every_path_in_a_document_exists(doc: Path) -> None:
    found = PATHS.findall(re.sub(r"\]\([^)]*\)", "]", text(doc)))
    assert not {path for path in found if not (ROOT / path).exists()}


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_no_document_names_a_path_of_one_machine(doc: Path) -> None:
    assert not MACHINE_PATHS.search(text(doc))


def slugs(document: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", without_fences(document), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_every_link_within_the_repository_resolves(doc: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", without_fences(doc)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        other = (doc.parent / path).resolve() if path else doc
        assert other.exists(), target
        assert not anchor or anchor in slugs(other), target


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_future_modes_are_named_as_not_there_yet_only(doc: Path) -> None:
    for paragraph in without_fences(doc).split("\n\n"):
        if any(f"`{word}`" in paragraph for word in FUTURE_WORDS):
            assert "not there yet" in paragraph.lower()


# --- commands -------------------------------------------------------------------------------------------------------


def commands(document: str) -> list[str]:
    """The `splitinfer` command lines of a document's plain code blocks, without comments."""
    lines = [line.strip() for block in fenced(document) for line in block.splitlines()]
    return [line for line in lines if line.startswith("splitinfer ") and "COMMAND" not in line]


COMMANDS = [line for doc in DOCS for line in commands(named(doc))]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_a_document_is_one_that_the_parser_takes(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if ">" in words:
        words = words[: words.index(">")]
    assert callable(build_parser().parse_args(words).handler)


def test_the_documents_show_every_command() -> None:
    shown = {word for line in COMMANDS for word in line.split()}
    assert {"run", "serve", "keys", "policy", "audit", "model"} <= shown
    assert "make demo" in text("README.md")


def subparser(parser: argparse.ArgumentParser, word: str) -> argparse.ArgumentParser | None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices.get(word)
    return None


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_every_command_in_running_text_exists(doc: Path) -> None:
    for quoted in re.findall(r"`splitinfer ((?:--home \S+ )?[a-z][^`]*)`", without_fences(doc)):
        words = re.sub(r"^--home \S+ ", "", quoted).split()
        parser: argparse.ArgumentParser = build_parser()
        while words and (found := subparser(parser, words[0])) is not None:
            parser, words = found, words[1:]
        assert parser.prog != "splitinfer", quoted
        options = {option for action in parser._actions for option in action.option_strings}
        assert all(word.split("=")[0] in options for word in words if word.startswith("-")), quoted


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_every_make_target_in_a_document_exists(doc: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.M))
    assert set(re.findall(r"(?:`|^ *)make ([a-z-]+)", text(doc), re.M)) <= targets


def test_the_python_of_the_readme_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITINFER_HOME", str(tmp_path / "home"))
    (block,) = fenced("README.md", "python")
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out.strip()
    assert printed
    assert f"It prints `{printed}`" in text("README.md")


# --- codes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_every_error_code_in_a_document_exists(doc: Path) -> None:
    assert set(re.findall(r"error\[(\w+)\]", text(doc))) - {"code"} <= codes()


def test_the_readme_repeats_the_exit_codes_of_the_help() -> None:
    helped = " ".join((build_parser().epilog or "").partition("exit codes: ")[2].split())
    assert helped
    assert helped in " ".join(text("README.md").split())


def test_the_exit_codes_of_the_help_are_those_of_the_errors() -> None:
    helped = (build_parser().epilog or "").partition("exit codes: ")[2]
    stated = {int(number) for number in re.findall(r"\b\d+\b", helped)}
    raised = {error.exit_code for error in tree()}
    assert stated == (raised - {1}) | {0, 130}


@pytest.mark.parametrize("doc", DOCS, ids=named)
def test_every_exit_code_in_a_document_exists(doc: Path) -> None:
    known = {error.exit_code for error in tree()} | {0, 130}
    found = re.findall(r"exit codes?:? (\d+)(?: or (\d+))?", text(doc))
    assert {int(number) for pair in found for number in pair if number} <= known


def test_the_format_lists_every_error_code() -> None:
    section = text("docs/format.md").partition("\n## 14. ")[2].partition("Of the HTTP door alone")[0]
    assert set(ticked(section)) == codes()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_readme_has_the_table_of_modes() -> None:
    rows = table("README.md", "trust mode")
    assert [ticked(row[0])[0] for row in rows] == [mode.value for mode in MODES]
    for (name, prefill, decode, leaves, _, readers, *_), row in zip(rows, MODES.values(), strict=True):
        assert prefill.startswith(row.prefill.removesuffix("public")), name
        assert decode == row.decode, name
        assert (leaves == "nothing") == (row.crosses == "nothing"), name
        assert ("recipient" in readers) == ("recipient" in row.readable_by), name
        assert row.protection == "none" or "sealed" in leaves, name


def test_the_measured_table_has_every_mode_and_nothing_left_in_local() -> None:
    rows = {ticked(row[0])[0]: row for row in table("README.md", "mode")}
    assert list(rows) == [mode.value for mode in MODES]
    assert rows["local"][4:6] == ["0", "0"]
    assert all(re.fullmatch(r"[0-9.]+ s|not measured", row[6]) for row in rows.values())


def test_the_settings_in_the_deployment_page_are_all_there_are_with_their_defaults() -> None:
    (block,) = fenced("docs/deployment.md", "toml")
    values = tomllib.loads(block)["server"]
    assert set(values) == set(ServerSettings.model_fields)
    make_settings(values)
    places = {"host", "tls_certificate", "tls_private_key"}
    defaults = ServerSettings().model_dump()
    assert {key: value for key, value in values.items() if key not in places} == {
        key: value for key, value in defaults.items() if key not in places
    }


def test_the_layers_in_contributing_are_those_that_are_checked() -> None:
    contracts = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == "layers")
    assert "\n".join(layers) + "\n" in fenced("CONTRIBUTING.md")


def test_words_of_the_glossary_are_explained() -> None:
    rows = [line.strip("| ").split(" | ") for line in text("docs/glossary.md").splitlines() if line.startswith("| ")]
    assert len(rows) > 60
    assert all(row[0] and row[1] for row in rows)


def test_names_in_the_glossary_exist_in_the_code() -> None:
    sources = [*ROOT.glob("splitinfer/**/*.py"), *ROOT.glob("trust_models/*.py"), *ROOT.glob("server/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    rows = [line.split(" | ") for line in text("docs/glossary.md").splitlines() if line.count(" | ") == 3]
    names = {name for row in rows[1:] for name in ticked(row[2])}
    assert len(names) > 50
    assert not {name for name in names if not all(re.search(rf"\b{part}\b", code) for part in re.split(r"[. ]", name))}


# --- numbers --------------------------------------------------------------------------------------------------------

NUMBERS = [
    f"{len(CHECKS)} numbered checks",
    f"nonce: once, {recipient.NONCE_SECONDS} s",
    f"expiry {transfer.EXPIRY_SECONDS} s, {intake.MAX_EXPIRY_SECONDS} s accepted",
    f"certificate at most {keyset.CERTIFICATE_SECONDS // 3600} h; keyset at most {keyset.KEYSET_SECONDS // 3600} h",
    f"frames: {stream.FRAME_CHUNK_BYTES} bytes, {frames.FRAME_FLOOR} or the next power of two",
    f"receipt {receipt.RECEIPT_BYTES:,} bytes",
    f"floor {schedule.GROUP_TOKENS}, Padme, multiples of {schedule.GROUP_TOKENS}",
    f"at most 2^{stream.MAX_CHUNKS.bit_length() - 1} chunks a key",
    f"k = {load_builtin('public-prefix').transfer.verify_rows} in the built-in policy, {MAX_VERIFY_ROWS} at most",
]


@pytest.mark.parametrize("phrase", NUMBERS)
def test_numbers_in_the_threat_model_are_those_of_the_code(phrase: str) -> None:
    assert phrase in text("threat_model.md")


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## {splitinfer.__version__} " in text("CHANGELOG.md")


def test_decision_records_have_the_usual_form() -> None:
    records = sorted(ROOT.glob("docs/adr/*.md"))
    assert [record.name[:4] for record in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for record in records:
        body = record.read_text(encoding="utf-8")
        assert body.startswith(f"# {int(record.name[:4])}. ")
        assert all(f"\n## {head}\n" in body for head in ("Context", "Decision", "Consequences"))
        assert "Status: " in body
