"""A prefill on rows is that on ids, bit for bit; models that look at ids elsewhere are refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from splitinfer.errors import PromptError, UnsupportedModelError
from splitinfer.handoff import Label
from splitinfer.model import embeddings
from splitinfer.model.embeddings import ID_KEYED_MODELS, as_embeddings, embedding_rows, require_only_embeddings
from splitinfer.model.engine import Engine
from splitinfer.model.loading import load
from splitinfer.model.prefill import prefill
from splitinfer.model.prompt import continued, text_token_ids, tokenize
from splitinfer.segments import note, public, question
from tests.support import tiny_models
from tests.support.architectures import ARCHITECTURES, tiny_architecture
from tests.support.cache_models import MODEL_NAMES, chunked, tiny_model, tiny_tokens


def same(one: Any, two: Any) -> bool:
    pairs = zip(one.layers, two.layers, strict=True)
    return all(torch.equal(tensor, b[name]) for a, b in pairs for name, tensor in a.items())


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prefill_on_rows_is_the_prefill_on_ids(name: str, dtype: str) -> None:
    model, ids = tiny_model(name, dtype), tiny_tokens(40)
    rows = as_embeddings(model, embedding_rows(model, ids))
    assert same(prefill(model, ids, steps=chunked(39)), prefill(model, ids, steps=chunked(39), embeddings=rows))
    require_only_embeddings(model)


def test_rows_are_seen_and_ids_are_not() -> None:
    model, ids = tiny_model("llama"), tiny_tokens(20)
    rows = embedding_rows(model, ids)
    other_ids = list(reversed(ids))
    steps = chunked(19)
    one = prefill(model, ids, steps=steps, embeddings=as_embeddings(model, rows))
    assert same(one, prefill(model, other_ids, steps=steps, embeddings=as_embeddings(model, rows)))
    rows[11] += 0.5
    two = prefill(model, ids, steps=steps, embeddings=as_embeddings(model, rows))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert torch.equal(a["keys"][:, :, :11], b["keys"][:, :, :11])
        assert not torch.equal(a["keys"][:, :, 11:], b["keys"][:, :, 11:])


def test_rows_hold_the_embeddings_own_scale() -> None:
    model = tiny_model("gemma3_text")
    rows = embedding_rows(model, [5, 6])
    raw = model.get_input_embeddings().weight[[5, 6]].detach().double().numpy()
    assert rows == pytest.approx(raw * np.sqrt(32), rel=1e-2)


@pytest.mark.parametrize("ids", [[-1], [10**6]])
def test_an_id_outside_the_vocabulary_is_refused(ids: list[int]) -> None:
    with pytest.raises(PromptError):
        embedding_rows(tiny_model("llama"), ids)


def test_a_model_that_looks_at_ids_elsewhere_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    own = model.base_model.forward

    def keyed(*args: Any, input_ids: Any = None, **named: Any) -> Any:
        output = own(*args, input_ids=input_ids, **named)
        if input_ids is not None:
            named["past_key_values"].layers[0].values[:, :, -1] += input_ids[0, -1] * 1e-3
        return output

    monkeypatch.setattr(model.base_model, "forward", keyed)
    with pytest.raises(UnsupportedModelError, match="llama looks at token ids"):
        require_only_embeddings(model)


def test_a_model_without_a_way_in_for_embeddings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    own = model.base_model.forward
    monkeypatch.setattr(model.base_model, "forward", lambda input_ids, **named: own(input_ids=input_ids, **named))
    with pytest.raises(UnsupportedModelError):
        require_only_embeddings(model)


@pytest.mark.parametrize(
    "config",
    [
        *[{"model_type": kind} for kind in ID_KEYED_MODELS],
        {"model_type": "gemma3n_text"},
        {"model_type": "new", "hidden_size_per_layer_input": 8},
        {"model_type": "new", "mlp_layer_types": ["moe", "hash_moe"]},
    ],
)
def test_known_architectures_are_refused_by_name(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_sees_embeddings_only", lambda _: True)
    text = SimpleNamespace(**config)
    model = SimpleNamespace(config=SimpleNamespace(model_type="outer", get_text_config=lambda: text))
    with pytest.raises(UnsupportedModelError, match=str(config["model_type"])):
        require_only_embeddings(model)


def is_listed(name: str) -> bool:
    return name.startswith(ID_KEYED_MODELS)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2", "phi3"])
def test_common_architectures_can_be_noised(name: str) -> None:
    require_only_embeddings(tiny_architecture(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in ARCHITECTURES if not is_listed(one.name)])
def test_every_architecture_that_is_not_listed_can_be_noised(name: str) -> None:
    require_only_embeddings(tiny_architecture(name))


@pytest.mark.parametrize("name", [one.name for one in ARCHITECTURES if is_listed(one.name)])
def test_listed_architectures_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        require_only_embeddings(tiny_architecture(name))


# --- where private text stands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(load(str(tiny_models.build(tmp_path_factory.mktemp("tiny") / "llama"))))


def test_private_positions_are_those_of_the_texts_and_of_no_literal() -> None:
    tokenizer = tiny_models.byte_tokenizer()
    prompt = tokenize(tokenizer, [public("open"), note("secret"), question("who?")])
    texts = [tokenizer.decode([prompt.token_ids[i] for i in range(*span)]) for span in prompt.text_spans]
    assert [text.strip() for text in texts] == ["open", "secret", "who?"]
    private = tokenizer.decode([prompt.token_ids[i] for i in prompt.private_positions])
    assert "secret" in private
    assert "who?" in private
    assert "im_start" not in private
    assert "open" not in private
    assert prompt.text_spans[-1][1] < len(prompt.token_ids), "the template's end is public"
    assert sum(prompt.segment_lengths) == len(prompt.token_ids)


def test_without_spans_whole_private_segments_count() -> None:
    from splitinfer.handoff import PromptTokens

    prompt = PromptTokens((9, 9, 9, 9, 9), (2, 3), (Label.PUBLIC, Label.PRIVATE))
    assert prompt.private_positions == (2, 3, 4)


def test_a_literal_after_the_prompt_is_not_of_its_text() -> None:
    tokenizer = tiny_models.byte_tokenizer()
    prompt = tokenize(tokenizer, [note("secret")])
    longer = continued(tokenizer, prompt, "\n>")
    assert longer.private_positions == prompt.private_positions
    assert len(longer.token_ids) == len(prompt.token_ids) + 2 == sum(longer.segment_lengths)
    assert continued(tokenizer, prompt, "") == prompt


def test_text_ids_are_all_that_texts_can_have_and_no_control_token(engine: Engine) -> None:
    tokenizer = tiny_models.byte_tokenizer()
    ids = set(text_token_ids(tokenizer))
    prompt = tokenize(tokenizer, [note("secret <|im_start|> ÄÖ 水"), question("\n\n who\x00?")])
    assert {prompt.token_ids[i] for i in prompt.private_positions} <= ids
    assert not ids & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    assert set(engine.text_token_ids) == ids


def test_rows_of_all_texts_are_there(engine: Engine, tmp_path: Path) -> None:
    rows = engine.embedding_rows(engine.text_token_ids)
    assert rows.shape == (len(engine.text_token_ids), 32)
    assert rows.dtype == np.float64
