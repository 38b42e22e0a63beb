"""`splitinfer model` on local directories, and `fetch` on a hub that is stood in for."""

import argparse
import json
from dataclasses import asdict
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from splitinfer import embedded
from splitinfer.cli.model import add_parser, fetch
from splitinfer.egress.verification import read_records
from splitinfer.errors import ModelNotFoundError, TransportError, UsageError
from splitinfer.home import Home
from splitinfer.home.losses import LossFile
from splitinfer.model.identity import identify
from splitinfer.model.measure_texts import built_in_texts
from tests.support.tiny_models import build
from tools import write_held_out_text


def run(*arguments, home=None):
    parser = argparse.ArgumentParser()
    parser.set_defaults(home=None if home is None else str(home))
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["model", *arguments])
    return args.handler(args)


@pytest.fixture
def directory(tmp_path):
    return build(tmp_path / "model")


def test_digest_prints_what_a_policy_pins(directory, capsys):
    assert run("digest", str(directory)) == 0
    assert capsys.readouterr().out == identify(directory).weights_sha256 + "\n"


def test_digest_as_json_has_all_three(directory, capsys):
    assert run("digest", str(directory), "--json") == 0
    identity = identify(directory)
    assert json.loads(capsys.readouterr().out) == {
        "weights_sha256": identity.weights_sha256,
        "config_sha256": identity.config_sha256,
        "tokenizer_sha256": identity.tokenizer_sha256,
    }


def test_info_says_architecture_and_digests(directory, capsys):
    assert run("info", str(directory)) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["model_type"] == "llama"
    assert lines["max_position_embeddings"] == "512"
    assert lines["weights_sha256"] == identify(directory).weights_sha256


def test_info_as_json_is_one_object(capsys):
    assert run("info", "embedded", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["source"], facts["model_type"], facts["num_hidden_layers"]) == ("embedded", "llama", 6)


def test_model_that_is_not_here_is_refused():
    with pytest.raises(ModelNotFoundError, match="splitinfer model fetch"):
        run("info", "splitinfer-tests/nowhere")


def test_fetch_downloads_weights_and_settings_but_no_pickle_and_no_code(directory, monkeypatch, capsys, tmp_path):
    asked = {}
    home = tmp_path / "home"

    def download(repo_id, *, allow_patterns):
        # Logged before anything moves.
        assert [record["type"] for record in read_records(home / "audit")] == ["download"]
        asked.update(repo_id=repo_id, patterns=allow_patterns)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert run("fetch", "some/model", "--json", home=home) == 0
    output = capsys.readouterr()
    facts = json.loads(output.out)
    assert (facts["directory"], facts["weights_sha256"]) == (str(directory), identify(directory).weights_sha256)
    assert "some/model" in output.err
    assert asked["repo_id"] == "some/model"

    def wanted(name):
        return any(fnmatch(name, pattern) for pattern in asked["patterns"])

    assert all(map(wanted, ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]))
    refused = [
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "model.pkl",
        "modeling.py",
        "tokenizer.py",
        "tokenizer.pkl",
    ]
    assert not any(map(wanted, refused))


def not_found():
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    return RepositoryNotFoundError("no such repository", response=response)


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (LocalEntryNotFoundError("offline"), TransportError),
        (OSError("disk full"), TransportError),
        (not_found(), ModelNotFoundError),
    ],
)
def test_fetch_that_fails_is_named(monkeypatch, cause, error):
    said = []

    def download(*_, **__):
        assert said == ["some/model"]
        raise cause

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(error):
        fetch("some/model", log=said.append)


def test_measure_keeps_what_a_codec_costs_by_weights_and_codec(directory, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Torvan kettle: price $48.50, stock 120 units. " * 15)
    home = tmp_path / "home"
    given = ("--text", str(tmp_path / "a.txt"), "--windows", "2", "--codec", "q8", "--codec", "lossless", "--json")
    assert run("measure", str(directory), *given, home=home) == 0
    printed = json.loads(capsys.readouterr().out)
    weights = identify(directory).weights_sha256
    assert printed["weights_sha256"] == weights
    kept = LossFile(Home(home))
    assert asdict(kept.get(weights, "q8")) == printed["codecs"]["q8"]
    assert printed["codecs"]["q8"]["kl_nats"] > 0 == printed["codecs"]["lossless"]["kl_nats"]
    assert kept.get(weights, "q4") is None


@pytest.mark.parametrize("wrong", [("--codec", "q2"), ("--windows", "1")])
def test_measure_refuses_an_unknown_codec_and_a_single_window(directory, tmp_path, wrong):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match="write --codec"):
        run("measure", str(directory), "--text", str(tmp_path / "a.txt"), *wrong, home=tmp_path / "home")


def test_measure_refuses_texts_that_cannot_be_read(directory, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        run("measure", str(directory), "--text", str(tmp_path / "none.txt"), home=tmp_path / "home")


def test_measure_without_a_text_takes_the_ones_that_come_with_the_package(directory, tmp_path, capsys):
    given = ("--windows", "3", "--codec", "q8", "--json")
    assert run("measure", str(directory), *given, home=tmp_path / "home") == 0
    assert json.loads(capsys.readouterr().out)["codecs"]["q8"]["tokens"] == 3 * 64


def test_the_embedded_model_is_measured_on_held_out_tables_and_notes_too(directory):
    assert len(built_in_texts(directory)) == 1
    prose, held_out = built_in_texts(embedded.path())
    assert prose == built_in_texts(directory)[0]
    assert held_out == write_held_out_text.text()
