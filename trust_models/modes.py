"""The closed table of trust modes as data: mode -> placement, protection and what is assumed; both sides.

Policies, logs, errors and docs use these words. The table holds only what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

__all__ = ["MODES", "ModeRow", "TrustMode"]


class TrustMode(StrEnum):
    """Placement, times protection, times what is assumed of the other side."""

    LOCAL = "local"
    PUBLIC_PREFIX = "public-prefix"
    SEALED_PREFILL = "sealed-prefill"
    SEALED_DECODE = "sealed-decode"
    NOISED_DECODE = "noised-decode"
    NOISED_PREFILL = "noised-prefill"
    HOMOMORPHIC = "homomorphic"
    MASKED = "masked"


@dataclass(frozen=True, slots=True)
class ModeRow:
    """One mode. `readable_by` is who can read the private text; `cloud_reads` is all that the cloud can read.

    `prefill` "cloud:public" means that the cloud prefills the leading run of public segments and the device the rest.
    `protection` is how whatever crosses is protected on its way to the recipient; `is_noised` tells that private text
    is noised before that, so that the recipient sees it through noise only.
    """

    mode: TrustMode
    prefill: Literal["device", "cloud", "cloud:public"]
    decode: Literal["device", "cloud"]
    crosses: str
    protection: Literal["none", "sealed", "homomorphic", "masked"]
    readable_by: tuple[str, ...]
    guarantee: str
    cloud_reads: str
    assumption: str
    is_noised: bool = False


_SEALED_GUARANTEE = (
    "cryptographic towards everyone but the recipient; towards the recipient only what pinning gives: "
    "it proves who the recipient is, not what the recipient does with the text"
)
_SEALED_ASSUMPTION = "the recipient with the pinned identity is trusted with the whole prompt"

_NOISED_GUARANTEE = (
    "the recipient sees private text through noise, with the epsilon and delta that the policy states between "
    "the neighbours that it names, or formally meaningless, empirical only, where that epsilon is large"
)

_ROWS = (
    ModeRow(
        mode=TrustMode.LOCAL,
        prefill="device",
        decode="device",
        crosses="nothing",
        protection="none",
        readable_by=("device",),
        guarantee="nothing leaves the device",
        cloud_reads="nothing",
        assumption="none: there is no other side",
    ),
    ModeRow(
        mode=TrustMode.PUBLIC_PREFIX,
        prefill="cloud:public",
        decode="device",
        crosses="public text up, its cache down",
        protection="sealed",
        readable_by=("device",),
        guarantee=(
            "private text never leaves the device, whatever the cloud does; the output is exact if the cloud is "
            "honest, and a malicious cloud can steer the answer, which verify_rows makes detectable"
        ),
        cloud_reads="the public text: which, when, how long",
        assumption="none for the secrecy of private text; honest for an exact answer",
    ),
    ModeRow(
        mode=TrustMode.SEALED_PREFILL,
        prefill="cloud",
        decode="device",
        crosses="the whole prompt up, its cache down",
        protection="sealed",
        readable_by=("device", "recipient"),
        guarantee=_SEALED_GUARANTEE,
        cloud_reads="the whole prompt",
        assumption=_SEALED_ASSUMPTION,
    ),
    ModeRow(
        mode=TrustMode.SEALED_DECODE,
        prefill="device",
        decode="cloud",
        crosses="the cache of the whole prompt up, tokens down",
        protection="sealed",
        readable_by=("device", "recipient"),
        guarantee=_SEALED_GUARANTEE,
        cloud_reads="the whole prompt (its cache gives it away) and the answer",
        assumption=f"{_SEALED_ASSUMPTION} and with the answer",
    ),
    ModeRow(
        mode=TrustMode.NOISED_DECODE,
        prefill="device",
        decode="cloud",
        crosses="the cache of the noised prompt up, tokens down",
        protection="sealed",
        readable_by=("device",),
        guarantee=_NOISED_GUARANTEE,
        cloud_reads=(
            "the public text, the private text through noise, how many private tokens there are and where, and the "
            "answer in clear"
        ),
        assumption="none for the promise about private text; honest for an honest answer",
        is_noised=True,
    ),
    ModeRow(
        mode=TrustMode.NOISED_PREFILL,
        prefill="cloud",
        decode="device",
        crosses="the embeddings of the noised prompt up, their cache down",
        protection="sealed",
        readable_by=("device",),
        guarantee=_NOISED_GUARANTEE,
        cloud_reads=(
            "the public text, the private text through noise, and how many private tokens there are and where"
        ),
        assumption="none for the promise about private text; honest for an honest answer",
        is_noised=True,
    ),
    ModeRow(
        mode=TrustMode.HOMOMORPHIC,
        prefill="device",
        decode="device",
        crosses="ciphertexts of the prompt's cache and of each step's queries and weights up, of products down",
        protection="homomorphic",
        readable_by=("device",),
        guarantee=(
            "cryptographic towards a cloud that is curious but follows the protocol: CKKS ciphertexts at 128-bit "
            "classical security by the Homomorphic Encryption Standard's tables; towards a cloud that does not follow "
            "it, nothing is claimed"
        ),
        cloud_reads="the prompt's length to a tile, how many tokens are made and when; public text where so set",
        assumption="the cloud follows the protocol and is curious",
    ),
    ModeRow(
        mode=TrustMode.MASKED,
        prefill="device",
        decode="device",
        crosses="activations under one-time masks up, products down",
        protection="masked",
        readable_by=("device",),
        guarantee=(
            "computational: activations are hidden by masks from a cryptographic stream, each used once, whatever the "
            "cloud does; a wrong product passes the three checks with a chance of at most 2^-51"
        ),
        cloud_reads="how many tokens are made and when, which mask pool and how much of it is used",
        assumption="none for the secrecy of the text; this machine is not put back to an earlier state",
    ),
)

MODES: Mapping[TrustMode, ModeRow] = MappingProxyType({row.mode: row for row in _ROWS})
