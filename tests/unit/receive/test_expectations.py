from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import LayoutMismatchError, ManifestError, ModelMismatchError, ReplayError
from splitinfer.handoff import CacheLayout, LayerKind, LayerLayout, SamplingParams
from splitinfer.receive.expectations import check_request, check_response
from splitinfer.schedule import pad_tokens
from splitinfer.sealing.encoding import canonical
from splitinfer.sealing.manifest import CacheWire, ModelWire, RequestManifest, SamplingWire, SessionWire, TokensWire
from splitinfer.sealing.wire import parse_wire
from tests.support.device_cloud import EXPECTED, LAYOUT, MODEL, request_manifest, response_manifest
from tests.support.layouts import every_kind, full

OTHER_MODELS = [
    replace(MODEL, weights_sha256="0" * 64),
    replace(MODEL, config_sha256="0" * 64),
    replace(MODEL, tokenizer_sha256="0" * 64),
]
OTHER_LAYOUTS = [
    CacheLayout(()),
    CacheLayout(LAYOUT.layers[:-1]),
    CacheLayout((*LAYOUT.layers, LAYOUT.layers[0])),
    CacheLayout(tuple(reversed(LAYOUT.layers[:2])) + LAYOUT.layers[2:]),
    CacheLayout((full((2, 8), (2, 4), "float16"), *LAYOUT.layers[1:])),
    CacheLayout((full((2, 9), (2, 4)), *LAYOUT.layers[1:])),
]

STATES = CacheLayout(every_kind())
KINDS = {layer.kind: place for place, layer in enumerate(STATES.layers)}


def other_states(kind: LayerKind, /, **changes: object) -> CacheLayout:
    """Change one layer of `STATES`."""
    place = KINDS[kind]
    changed: LayerLayout = replace(STATES.layers[place], **changes)  # type: ignore[arg-type]
    return CacheLayout((*STATES.layers[:place], changed, *STATES.layers[place + 1 :]))


def other_tensor(kind: LayerKind, place: int, /, **changes: object) -> CacheLayout:
    """Change one tensor of one layer of `STATES`."""
    tensors = list(STATES.layers[KINDS[kind]].tensors)
    tensors[place] = replace(tensors[place], **changes)  # type: ignore[arg-type]
    return other_states(kind, tensors=tuple(tensors))


OTHER_STATES = [
    other_states("linear", tensors=STATES.layers[KINDS["linear"]].tensors[:1]),
    other_states("linear", tensors=STATES.layers[KINDS["linear"]].tensors * 2),
    other_states("linear", tensors=STATES.layers[KINDS["linear"]].tensors[::-1]),
    other_states("linear", kind="linear_full"),
    other_states("empty", tensors=STATES.layers[KINDS["lightning"]].tensors),
    other_states("empty", kind="full"),
    other_states("compressed", stride=8),
    other_states("compressed_sparse", window=10),
    other_tensor("linear", 1, before=(2, 15)),
    other_tensor("linear", 1, before=(30,)),
    other_tensor("linear", 1, dtype="bfloat16"),
    other_tensor("linear", 1, name="recurrent_states_1"),
    other_tensor("linear", 1, rows="tokens"),
    other_tensor("lightning", 0, before=(2, 9)),
    other_tensor("indexed", 2, before=(1,)),
    other_tensor("indexed", 2, after=(5,)),
    other_tensor("compressed", 1, rows="remainder"),
]


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize("tokens", [1, 64, 65, 4000])
def test_a_fitting_request_is_accepted(kind: str, tokens: int) -> None:
    check_request(request_manifest(kind, tokens=tokens), EXPECTED)


@pytest.mark.parametrize("model", OTHER_MODELS)
def test_a_request_for_another_model_is_refused_with_both_digests(model: object) -> None:
    with pytest.raises(ModelMismatchError) as caught:
        check_request(request_manifest(model=ModelWire.of(model)), EXPECTED)  # type: ignore[arg-type]
    assert "0" * 64 in caught.value.fields.values()
    assert len(caught.value.fields) == 2
    assert all(value in str(caught.value) for value in caught.value.fields.values())


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_request_of_another_layout_is_refused(layout: CacheLayout) -> None:
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("decode", cache=CacheWire.of(layout)), EXPECTED)


@pytest.mark.parametrize("layout", OTHER_STATES)
def test_a_request_of_other_states_is_refused(layout: CacheLayout) -> None:
    expected = replace(EXPECTED, layout=STATES)
    check_request(request_manifest("decode", cache=CacheWire.of(STATES)), expected)
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("decode", cache=CacheWire.of(layout)), expected)


def test_a_layout_of_millions_of_layers_is_refused_without_being_built() -> None:
    run = CacheWire.of(LAYOUT).layers[0].model_copy(update={"count": 4096})
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("decode", cache=CacheWire(layers=[run] * 4096)), EXPECTED)


def test_the_same_layout_in_other_runs_is_the_same_layout() -> None:
    uniform = CacheLayout((LAYOUT.layers[0],) * 2)
    run = CacheWire.of(uniform).layers[0]
    split = CacheWire(layers=[run.model_copy(update={"count": 1})] * 2)
    expected = replace(EXPECTED, layout=uniform)
    check_request(request_manifest("decode", cache=split), expected)


@given(true=st.integers(1, 4096), padded=st.integers(1, 2**24))
@settings(deadline=None, max_examples=80)
def test_a_padded_count_that_is_not_its_size_class_is_refused(true: int, padded: int) -> None:
    manifest = request_manifest(tokens=true, steps=[(0, true)]).model_copy(
        update={"tokens": TokensWire(true=true, padded=padded)}
    )
    if padded == pad_tokens(true):
        check_request(manifest, EXPECTED)
        return
    with pytest.raises(LayoutMismatchError):
        check_request(manifest, EXPECTED)


def test_more_tokens_than_the_model_has_positions_are_refused() -> None:
    check_request(request_manifest(tokens=4096), EXPECTED)
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest(tokens=4097), EXPECTED)


def test_prompt_and_answer_must_fit_in_the_positions() -> None:
    sampling = SamplingWire.of(SamplingParams(max_new_tokens=95))
    check_request(request_manifest("decode", tokens=4000, sampling=sampling), EXPECTED)
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("decode", tokens=4001, sampling=sampling), EXPECTED)


def test_the_last_token_must_be_in_the_vocabulary() -> None:
    check_request(request_manifest("decode", last_token=999), EXPECTED)
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("decode", last_token=1000), EXPECTED)


@pytest.mark.parametrize("name", ["cache", "last_token", "sampling"])
def test_a_decode_request_lacks_nothing_and_a_prefill_request_has_none_of_it(name: str) -> None:
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("decode", tokens=100, **{name: None}), EXPECTED)
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest("prefill", **{name: getattr(request_manifest("decode"), name)}), EXPECTED)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [(0, 99)],
        [(0, 101)],
        [(1, 100)],
        [(0, 50), (51, 100)],
        [(0, 50), (49, 100)],
        [(0, 100), (100, 100)],
        [(0, 0), (0, 100)],
        [(50, 100), (0, 50)],
        [(0, 100), (0, 100)],
        [(0, 100), (100, 50), (50, 100)],
    ],
)
def test_steps_that_do_not_cover_the_tokens_once_are_refused(steps: list[tuple[int, int]]) -> None:
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest(steps=steps), EXPECTED)


@given(cuts=st.sets(st.integers(1, 99)))
@settings(deadline=None, max_examples=30)
def test_any_cut_of_the_tokens_into_steps_is_accepted(cuts: set[int]) -> None:
    ends = [0, *sorted(cuts), 100]
    check_request(request_manifest(steps=list(pairwise(ends))), EXPECTED)


PARENT = "7" * 64
LATER = {"turn": 1, "parent_root": PARENT, "base_tokens": 40}


def place(**session: object) -> SessionWire:
    fields: dict[str, object] = {
        "session_id": "6" * 32,
        "turn": 0,
        "parent_root": "",
        "base_tokens": 0,
        "keep": False,
        **session,
    }
    return SessionWire(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("session", [{"turn": 1, "base_tokens": 40, "parent_root": PARENT}, {"keep": True}], ids=str)
def test_a_prompt_of_rows_stands_in_no_session(session: dict[str, object]) -> None:
    with pytest.raises(ReplayError):
        check_request(request_manifest("rows", session=place(**session)), EXPECTED)


@pytest.mark.parametrize(
    "session",
    [
        {"turn": 1},
        {"parent_root": PARENT},
        {"base_tokens": 1},
        {"turn": 1, "parent_root": PARENT},
        {"turn": 1, "base_tokens": 40},
        {"parent_root": PARENT, "base_tokens": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_turn_that_is_neither_a_first_nor_a_later_one_is_refused(kind: str, session: dict[str, object]) -> None:
    with pytest.raises(ReplayError):
        check_request(request_manifest(kind, session=place(**session)), EXPECTED)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_later_turn_pads_and_steps_over_its_new_tokens(kind: str, keep: bool) -> None:
    tokens = TokensWire(true=100, padded=40 + 64)
    later = place(**LATER, keep=keep)
    check_request(request_manifest(kind, session=later, tokens_wire=tokens, steps=[(40, 100)]), EXPECTED)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_wire": TokensWire(true=100, padded=128)},
        {"tokens_wire": TokensWire(true=40, padded=104)},
        {"steps": [(0, 100)]},
        {"steps": [(41, 100)]},
    ],
    ids=["padded as a first turn", "nothing new", "steps over the base", "a gap after the base"],
)
def test_a_later_turn_of_other_counts_or_steps_is_refused(changes: dict[str, object]) -> None:
    honest: dict[str, object] = {"tokens_wire": TokensWire(true=100, padded=104), "steps": [(40, 100)]}
    with pytest.raises(LayoutMismatchError):
        check_request(request_manifest(session=place(**LATER), **{**honest, **changes}), EXPECTED)


def test_public_text_may_have_a_base_and_is_stepped_from_its_start() -> None:
    tokens = TokensWire(true=100, padded=104)
    check_request(request_manifest(public=True, session=place(base_tokens=40), tokens_wire=tokens), EXPECTED)
    check_request(request_manifest(public=True), EXPECTED)


@pytest.mark.parametrize("session", [LATER, {"keep": True}], ids=str)
def test_public_text_in_a_session_is_refused(session: dict[str, object]) -> None:
    with pytest.raises(ReplayError):
        check_request(request_manifest(public=True, session=place(**session)), EXPECTED)


def test_a_cache_to_decode_from_is_no_public_text() -> None:
    with pytest.raises(ReplayError):
        check_request(request_manifest("decode", public=True), EXPECTED)


def test_a_session_ends_with_a_request_that_carries_nothing() -> None:
    one = TokensWire(true=1, padded=64)
    check_request(request_manifest("close", tokens_wire=one, steps=[]), EXPECTED)
    for changes in ({"steps": [(0, 1)]}, {"tokens_wire": TokensWire(true=2, padded=64)}, {"last_token": 3}):
        with pytest.raises(LayoutMismatchError):
            check_request(request_manifest("close", **{"tokens_wire": one, "steps": [], **changes}), EXPECTED)
    with pytest.raises(ReplayError):
        check_request(request_manifest("close", session=place(**LATER), tokens_wire=one, steps=[]), EXPECTED)


@pytest.mark.parametrize(
    "changes",
    [{"protection": "none"}, {"protection": ""}, {"codec": "q2"}, {"pad": "none"}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_what_is_not_accepted_is_refused(kind: str, changes: dict[str, object]) -> None:
    with pytest.raises(ManifestError):
        check_request(request_manifest(kind, tokens=100, **changes), EXPECTED)


REQUEST = request_manifest(tokens=100)
DIGEST = REQUEST.digest.hex()


@pytest.mark.parametrize("kind", ["cache", "tokens", "refusal"])
def test_a_fitting_reply_is_accepted(kind: str) -> None:
    check_response(response_manifest(kind, REQUEST), EXPECTED, tokens=100, request_sha256=DIGEST)


@pytest.mark.parametrize("kind", ["cache", "tokens"])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"request_manifest_sha256": "0" * 64}, ReplayError),
        ({"model": None}, ManifestError),
        ({"model": ModelWire.of(OTHER_MODELS[0])}, ModelMismatchError),
        ({"model": ModelWire.of(OTHER_MODELS[2])}, ModelMismatchError),
        ({"codec": "q2"}, ManifestError),
    ],
    ids=str,
)
def test_a_reply_that_does_not_fit_is_refused(kind: str, changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_response(response_manifest(kind, REQUEST, **changes), EXPECTED, tokens=100, request_sha256=DIGEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"cache": None},
        {"tokens": TokensWire(true=99, padded=128)},
        {"tokens": TokensWire(true=100, padded=192)},
        *({"cache": CacheWire.of(layout)} for layout in OTHER_LAYOUTS),
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_cache_of_another_shape_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(LayoutMismatchError):
        check_response(response_manifest("cache", REQUEST, **changes), EXPECTED, tokens=100, request_sha256=DIGEST)


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_named_before_any_unknown_field(version: int) -> None:
    newer = canonical({**request_manifest().model_dump(mode="json"), "version": version, "new_field": 1})
    with pytest.raises(ManifestError, match="another protocol version"):
        parse_wire(RequestManifest, newer, what="sealed manifest")


def test_a_version_deeper_inside_counts_too() -> None:
    wire = canonical({"body": {"version": 2}})
    with pytest.raises(ManifestError, match="another protocol version"):
        parse_wire(RequestManifest, wire, what="receipt")


def test_a_mismatch_names_each_side_by_its_own_digest() -> None:
    """On the device `here` is the device's digest, in the cloud the cloud's: the fields may not swap them."""
    theirs = ModelWire.of(OTHER_MODELS[0])
    with pytest.raises(ModelMismatchError) as in_the_cloud:
        check_request(request_manifest(model=theirs), EXPECTED)
    assert in_the_cloud.value.fields == {
        "weights_sha256_cloud": MODEL.weights_sha256,
        "weights_sha256_device": "0" * 64,
    }
    with pytest.raises(ModelMismatchError) as on_the_device:
        check_response(response_manifest("cache", REQUEST, model=theirs), EXPECTED, tokens=100, request_sha256=DIGEST)
    assert on_the_device.value.fields == {
        "weights_sha256_cloud": "0" * 64,
        "weights_sha256_device": MODEL.weights_sha256,
    }
