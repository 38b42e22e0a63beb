"""Every trust mode has one way of running, and every way is some mode's."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

from splitinfer import ways
from splitinfer.ways.run import Run
from splitinfer.ways.table import WAYS, Way
from trust_models.modes import MODES, TrustMode
from trust_models.schema import Policy


def public_ways() -> set[Way]:
    """Every listed function of `ways` that is given a run and nothing else, and makes text pieces of it."""
    found = set()
    for info in pkgutil.iter_modules(ways.__path__):
        module = importlib.import_module(f"{ways.__name__}.{info.name}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and is_way(value):
                found.add(value)
    return found


def is_way(function: Way) -> bool:
    signature = inspect.signature(function, eval_str=True)
    parameters = [parameter.annotation for parameter in signature.parameters.values()]
    return parameters == [Run] and signature.return_annotation == Iterator[str]


def test_every_mode_of_the_policy_schema_has_a_way() -> None:
    assert Policy.model_fields["mode"].annotation is TrustMode
    assert set(WAYS) == set(TrustMode) == set(MODES)


def test_a_way_without_a_mode_does_not_stay() -> None:
    assert public_ways() == set(WAYS.values())


def test_the_table_is_closed() -> None:
    with pytest.raises(TypeError):
        WAYS[TrustMode.LOCAL] = WAYS[TrustMode.MASKED]  # type: ignore[index]


@pytest.mark.parametrize("mode", TrustMode)
def test_a_way_computes_where_its_mode_says(mode: TrustMode) -> None:
    """Two modes go one way only where they place and protect alike."""
    alike = [other for other in TrustMode if WAYS[other] is WAYS[mode]]
    assert {MODES[other].decode for other in alike} == {MODES[mode].decode}
    assert {MODES[other].prefill.partition(":")[0] for other in alike} == {MODES[mode].prefill.partition(":")[0]}
    assert {MODES[other].is_noised for other in alike} == {MODES[mode].is_noised}
