"""Rules of the policy about lossy codecs: q4 needs a word on small models, a floor needs a measurement below it."""

from __future__ import annotations

import math

import pytest

from splitinfer.codec import CODECS
from splitinfer.errors import PolicyError
from splitinfer.receive.expectations import ACCEPTED_CODECS, VARIABLE_CODECS
from trust_models.codecs import CODEC_TEXTS, LOSSY, SMALL_MODEL_PARAMETERS, Loss, require_codec
from trust_models.explain import explain
from trust_models.schema import Policy, Remote, Transfer

GOOD = Loss(kl_nats=6e-5, kl_error_nats=6e-6, top1_agreement=0.997, perplexity_ratio=1.0001, tokens=2048)
SMALL, LARGE = 1_700_000, SMALL_MODEL_PARAMETERS


def test_every_place_knows_the_same_codecs() -> None:
    assert tuple(CODEC_TEXTS) == tuple(CODECS) == ACCEPTED_CODECS
    assert {name for name, row in CODECS.items() if not row.is_exact} == set(LOSSY)
    assert {name for name, row in CODECS.items() if row.is_variable} == set(VARIABLE_CODECS)
    for name in CODECS:
        assert Transfer(codec=name).codec == name


def test_q4_on_a_model_below_a_billion_parameters_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"1,700,000 parameters .* allow_q4_small_models = true"):
        require_codec(Transfer(codec="q4"), parameters=SMALL, loss=None)


def test_q4_is_permitted_by_a_word_or_by_size() -> None:
    require_codec(Transfer(codec="q4", allow_q4_small_models=True), parameters=SMALL, loss=None)
    require_codec(Transfer(codec="q4"), parameters=LARGE, loss=None)


@pytest.mark.parametrize("name", ["raw", "lossless", "q8", "k8v4", "k6v4"])
def test_other_codecs_need_no_word(name: str) -> None:
    require_codec(Transfer(codec=name), parameters=SMALL, loss=None)


def test_a_floor_without_a_measurement_refuses_and_says_how_to_measure() -> None:
    with pytest.raises(PolicyError, match="splitinfer model measure SOURCE --codec q8"):
        require_codec(Transfer(codec="q8", max_kl=1.0), parameters=SMALL, loss=None)


@pytest.mark.parametrize(
    ("kl", "error"), [(2e-4, 0.0), (9e-5, 1e-5), (math.nan, 0.0), (0.0, math.nan), (0.0, math.inf)]
)
def test_a_loss_above_the_floor_is_refused_with_the_figure(kl: float, error: float) -> None:
    loss = Loss(kl, error, 1.0, 1.0, 64)
    with pytest.raises(PolicyError, match=r"codec q8 costs .* transfer.max_kl is 0.0001"):
        require_codec(Transfer(codec="q8", max_kl=1e-4), parameters=SMALL, loss=loss)


def test_a_loss_below_the_floor_is_permitted() -> None:
    require_codec(Transfer(codec="q8", max_kl=1e-4), parameters=SMALL, loss=GOOD)


def explained(transfer: Transfer, loss: Loss | None = None) -> str:
    policy = Policy(mode="sealed-decode", remote=Remote(name="default"), transfer=transfer)
    return " ".join(explain(policy, loss=loss).split())


@pytest.mark.parametrize("name", LOSSY)
def test_explanation_of_a_lossy_codec_says_that_the_answer_can_differ(name: str) -> None:
    text = explained(Transfer(codec=name))
    assert "rounded" in text
    assert "never called exact" in text
    assert "was not measured here" in text


def test_explanation_quotes_what_was_measured_and_the_floor() -> None:
    text = explained(Transfer(codec="q8", max_kl=1e-3), GOOD)
    assert "divergence 6.00e-05 +- 6e-06 nats, the same next token in 99.7 %" in text
    assert "refused above 0.001 nats" in text


def test_explanation_of_exact_codecs_says_so_and_lossless_names_its_side_channel() -> None:
    assert "Codec raw: as it is, bit for bit." in explained(Transfer())
    text = explained(Transfer(codec="lossless"))
    assert "bit for bit" in text
    assert "depends on the text" in text
    assert "rounded: " not in text
