from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from tenseal import sealapi

from splitinfer.errors import CryptoParameterError
from splitinfer.homomorphic import parameters
from splitinfer.homomorphic.parameters import PROFILES, Parameters, parameters_for, require_secure
from splitinfer.homomorphic.seal import make_context


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_accepted_by_seal_at_128_bits(profile: str) -> None:
    assert make_context(parameters_for(profile)).parameters_set()
    assert parameters_for(profile).classical_bits >= 128


def test_the_levels_that_each_profile_states() -> None:
    assert {name: (one.classical_bits, one.post_quantum_bits) for name, one in PROFILES.items()} == {
        "balanced": (128, 0),
        "accurate": (128, 128),
        "fast": (128, 0),
    }
    assert "128-bit classical, below 128-bit post-quantum" in PROFILES["balanced"].security
    assert "128-bit classical, 128-bit post-quantum" in PROFILES["accurate"].security


def test_only_the_fast_profile_is_labelled_approximate() -> None:
    assert [name for name, one in PROFILES.items() if one.is_approximate] == ["fast"]


@pytest.mark.parametrize("bits", [(35, 35, 40), (60, 60), (52, 58)])
def test_parameters_below_128_bits_are_refused(bits: tuple[int, ...]) -> None:
    weak = replace(PROFILES["balanced"], modulus_bits=bits)
    with pytest.raises(CryptoParameterError, match=r"below 128-bit security, where the HE standard allows 109"):
        require_secure(weak)
    with pytest.raises(CryptoParameterError, match="below 128-bit"):
        make_context(weak)


def test_a_ring_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(CryptoParameterError, match="below 128-bit"):
        require_secure(Parameters("odd", 4097, (30, 30), 10, 10, 10, 10))


def test_scales_that_leave_a_product_no_room_are_refused() -> None:
    with pytest.raises(CryptoParameterError, match="lower the scales"):
        require_secure(replace(PROFILES["balanced"], query_bits=33))


def test_an_unknown_profile_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(CryptoParameterError, match="'tiny' is not one of balanced, accurate, fast"):
        parameters_for("tiny")


def test_the_classical_table_is_that_of_seal() -> None:
    kinds = [sealapi.SEC_LEVEL_TYPE.__members__[name] for name in ("TC128", "TC192", "TC256")]
    for degree, limits in parameters._CLASSICAL.items():
        assert limits == tuple(sealapi.CoeffModulus.MaxBitCount(degree, kind) for kind in kinds)


def test_post_quantum_limits_are_below_the_classical_ones() -> None:
    assert parameters._POST_QUANTUM.keys() == parameters._CLASSICAL.keys()
    for degree, limits in parameters._POST_QUANTUM.items():
        assert all(after < before for after, before in zip(limits, parameters._CLASSICAL[degree], strict=True))


def test_a_missing_tenseal_is_named_with_what_to_install() -> None:
    code = "import sys; sys.modules['tenseal'] = None; import splitinfer.homomorphic.seal"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "CryptoParameterError: the homomorphic mode needs TenSEAL; run pip install 'splitinfer[he]'" in found.stderr
