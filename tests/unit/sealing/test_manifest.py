from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.errors import ManifestError, UsageError
from splitinfer.handoff import (
    CacheLayout,
    LayerKind,
    LayerLayout,
    Numerics,
    RowRule,
    SamplingParams,
    TensorLayout,
    TensorName,
)
from splitinfer.schedule import slabs
from splitinfer.sealing.encoding import canonical
from splitinfer.sealing.manifest import (
    MANIFEST_REGION_BYTES,
    CacheWire,
    NumericsWire,
    RequestManifest,
    ResponseManifest,
    SamplingWire,
    cache_bytes,
    manifest_region,
)
from splitinfer.sealing.stream import CHUNK_BYTES
from splitinfer.sealing.wire import parse_wire
from tests.support.device_cloud import LAYOUT, request_manifest, response_manifest

dims = st.lists(st.integers(1, 65536), max_size=4).map(tuple)
tensors = st.builds(
    TensorLayout,
    name=st.sampled_from(get_args(TensorName)),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    rows=st.sampled_from(get_args(RowRule)),
    before=dims,
    after=dims,
)
layers = st.builds(
    LayerLayout,
    kind=st.sampled_from(get_args(LayerKind)),
    tensors=st.lists(tensors, max_size=16).map(tuple),
    window=st.integers(0, 8192),
    stride=st.integers(0, 8192),
)
layouts = st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=40).flatmap(
    lambda order: st.tuples(layers, layers, layers).map(lambda kinds: CacheLayout(tuple(kinds[i] for i in order)))
)


@given(layout=layouts)
@settings(deadline=None, max_examples=60)
def test_a_layout_comes_back(layout: CacheLayout) -> None:
    wire = CacheWire.of(layout)
    assert CacheWire.model_validate_json(wire.to_bytes()).layout() == layout
    assert all(a.model_copy(update={"count": b.count}) != b for a, b in zip(wire.layers, wire.layers[1:], strict=False))


@given(
    params=st.builds(
        SamplingParams,
        max_new_tokens=st.integers(1, 2**20),
        temperature=st.just(0.0) | st.floats(1e-3, 1e6),
        top_p=st.floats(1e-3, 1.0),
        top_k=st.integers(0, 2**31 - 1),
        seed=st.integers(0, 2**63 - 1),
        stop=st.lists(st.text(min_size=1, max_size=20), max_size=16).map(tuple),
    )
)
@settings(deadline=None, max_examples=80)
def test_sampling_comes_back_to_the_last_bit(params: SamplingParams) -> None:
    wire = SamplingWire.of(params)
    back = SamplingWire.model_validate_json(wire.to_bytes()).params()
    assert asdict(back) == asdict(params)
    assert (back.temperature.hex(), back.top_p.hex()) == (params.temperature.hex(), params.top_p.hex())


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 1e-30},
        {"temperature": 1.2345678901234567e-05},
        {"temperature": 1e300},
        {"top_p": 5e-324},
        {"top_k": 2**31},
        {"max_new_tokens": 2**20 + 1},
        {"stop": ("\ud800",)},
        {"stop": ("x" * 1025,)},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_sampling_that_cannot_be_written_is_refused_by_a_typed_error(changes: dict[str, object]) -> None:
    params = SamplingParams(**changes)  # type: ignore[arg-type]
    with contextlib.suppress(UsageError, ManifestError):
        assert SamplingWire.of(params).params() == params


@pytest.mark.parametrize(
    ("name", "value"), [("seed", "1.5"), ("temperature", "-1"), ("top_p", "1e3"), ("seed", "٣"), ("seed", "")]
)
def test_sampling_that_is_no_number_is_refused(name: str, value: str) -> None:
    wire = SamplingWire.of(SamplingParams()).model_dump(mode="json") | {name: value}
    request = request_manifest("decode").model_dump(mode="json") | {"sampling": wire}
    with pytest.raises(ManifestError):
        read_sampling(_canonical(request))


def read_sampling(data: bytes) -> SamplingParams | None:
    sampling = parse_wire(RequestManifest, data, what="sealed manifest").sampling
    return sampling.params() if sampling else None


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_request_manifest_comes_back(kind: str) -> None:
    manifest = request_manifest(kind)
    assert parse_wire(RequestManifest, manifest.to_bytes(), what="sealed manifest") == manifest


@pytest.mark.parametrize("kind", ["cache", "tokens", "refusal"])
def test_a_response_manifest_comes_back(kind: str) -> None:
    manifest = response_manifest(kind, request_manifest())
    assert parse_wire(ResponseManifest, manifest.to_bytes(), what="response manifest") == manifest


@pytest.mark.parametrize("name", list(RequestManifest.model_fields))
def test_a_request_manifest_without_one_of_its_fields_is_refused(name: str) -> None:
    fields = request_manifest("decode").model_dump(mode="json")
    del fields[name]
    with pytest.raises(ManifestError, match=name):
        parse_wire(RequestManifest, _canonical(fields), what="sealed manifest")


@pytest.mark.parametrize("name", list(RequestManifest.model_fields))
@pytest.mark.parametrize("value", [True, "1", -1, [], {}, 2**40, "A" * 64, "1" * 64 + "\n"], ids=str)
def test_a_field_of_another_kind_is_refused_or_kept_as_it_is(name: str, value: object) -> None:
    fields = request_manifest("decode").model_dump(mode="json") | {name: value}
    try:
        back = parse_wire(RequestManifest, _canonical(fields), what="sealed manifest")
    except ManifestError:
        return
    assert back.model_dump(mode="json") == fields


def test_an_unknown_field_is_refused_at_every_depth() -> None:
    fields = request_manifest("decode").model_dump(mode="json")
    for path in ((), ("model",), ("numerics",), ("session",), ("tokens",), ("cache",), ("sampling",)):
        changed = parse_copy(fields)
        inner = changed
        for step in path:
            inner = inner[step]  # type: ignore[assignment]
        inner["extra"] = 1
        with pytest.raises(ManifestError, match="extra"):
            parse_wire(RequestManifest, _canonical(changed), what="sealed manifest")


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("layer", {"kind": "rwkv"}),
        ("layer", {"kind": "__class__"}),
        ("layer", {"stride": -1}),
        ("layer", {"count": 0}),
        ("tensor", {"name": "__class__"}),
        ("tensor", {"name": "conv_states_4"}),
        ("tensor", {"rows": "all"}),
        ("tensor", {"dtype": "float64"}),
        ("tensor", {"dtype": "int8"}),
        ("tensor", {"before": [0]}),
        ("tensor", {"before": [2**16 + 1]}),
        ("tensor", {"before": [1, 1, 1, 1, 1]}),
        ("tensor", {"after": [True]}),
        ("tensor", {"extra": 1}),
    ],
    ids=str,
)
def test_a_layout_outside_the_closed_tables_is_refused(place: str, changes: dict[str, object]) -> None:
    fields = request_manifest("decode").model_dump(mode="json")
    layer = fields["cache"]["layers"][0]
    (layer if place == "layer" else layer["tensors"][0]).update(changes)
    with pytest.raises(ManifestError, match="cache"):
        parse_wire(RequestManifest, _canonical(fields), what="sealed manifest")


def test_a_layer_of_more_tensors_than_any_kind_has_is_refused() -> None:
    fields = request_manifest("decode").model_dump(mode="json")
    fields["cache"]["layers"][0]["tensors"] *= 9
    with pytest.raises(ManifestError, match="tensors"):
        parse_wire(RequestManifest, _canonical(fields), what="sealed manifest")


def test_a_wrong_value_does_not_stand_in_the_error() -> None:
    fields = request_manifest().model_dump(mode="json") | {"policy_sha256": "canary"}
    with pytest.raises(ManifestError, match="policy_sha256") as caught:
        parse_wire(RequestManifest, _canonical(fields), what="sealed manifest")
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_numerics_come_back() -> None:
    numerics = Numerics("2.13.0", "cpu", "float32", "sdpa", 4)
    assert NumericsWire.of(numerics).numerics() == numerics


@given(size=st.integers(0, 20_000), chunk_bytes=st.sampled_from(CHUNK_BYTES[:3]))
@settings(deadline=None, max_examples=60)
def test_a_region_ends_at_a_chunk_and_hides_the_manifests_length(size: int, chunk_bytes: int) -> None:
    region = manifest_region(b"x" * size, chunk_bytes=chunk_bytes)
    unit = max(chunk_bytes, MANIFEST_REGION_BYTES)
    assert len(region) % chunk_bytes == len(region) % MANIFEST_REGION_BYTES == 0
    assert len(region) - unit < size + 4 <= len(region)
    assert region[4 : 4 + size] == b"x" * size
    assert not any(region[4 + size :])


@given(tokens=st.integers(1, 40).map(lambda blocks: blocks * 64))
@settings(deadline=None, max_examples=20)
def test_the_bytes_of_a_cache_are_those_of_its_slabs(tokens: int) -> None:
    full = 2 * tokens * (2 * 8 + 2 * 4) * 4
    sliding = min(16, tokens) * (8 + 8) * 2
    assert cache_bytes(LAYOUT, tokens) == sum(slab.size_bytes for slab in slabs(LAYOUT, tokens)) == full + sliding


def parse_copy(fields: dict[str, object]) -> dict[str, object]:
    copied: dict[str, object] = json.loads(json.dumps(fields))
    return copied


def _canonical(fields: dict[str, object]) -> bytes:
    return canonical(fields)
