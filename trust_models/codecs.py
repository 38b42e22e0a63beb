"""What the policy's words for packing a cache mean, and when a lossy one may be used: facts as data, no IO.

Raw and lossless are exact. The others round keys and values; what that costs is a property of the model, measured by
`splitinfer model measure` as the divergence of next-token distributions. The levels of `ftc1` are calibrated: they need
an artefact of the model, and a certificate of what they cost it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from splitinfer.errors import PolicyError

if TYPE_CHECKING:
    from trust_models.schema import Transfer

__all__ = ["AUTO", "CALIBRATED", "CODEC_TEXTS", "LOSSY", "SMALL_MODEL_PARAMETERS", "CodecName", "Loss", "require_codec"]

CodecName = Literal[
    "raw",
    "lossless",
    "q8",
    "k8v4",
    "k6v4",
    "q4",
    "ftc1-2",
    "ftc1-1.5",
    "ftc1-1",
    "ftc1-0.75",
    "ftc1-0.5",
    "ftc1-0.375",
    "auto",
]

AUTO = "auto"
# From the level that loses least to the one that loses most.
CALIBRATED = ("ftc1-2", "ftc1-1.5", "ftc1-1", "ftc1-0.75", "ftc1-0.5", "ftc1-0.375")
LOSSY = ("q8", "k8v4", "k6v4", "q4", *CALIBRATED)
SMALL_MODEL_PARAMETERS = 10**9

CODEC_TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "raw": "as it is, bit for bit",
        "lossless": (
            "compressed without loss, bit for bit. Its compressed size depends on the text; it is rounded up to a size "
            "class, which still tells an observer a few bits about how regular the text is"
        ),
        "q8": "rounded to 8 bits an element",
        "k8v4": "rounded: keys to 8 bits an element, values to 4",
        "k6v4": "rounded: keys to 6 bits an element, values to 5; the first rows of every 512 to bfloat16",
        "q4": "rounded to 4 bits an element, with which several in a hundred next tokens are others than without it",
        **{
            name: (
                "keys and values of all layers together, in components that were calibrated for this model, rounded to "
                f"{name.removeprefix('ftc1-')} bits an element on average. A recipient reads the text from it all the "
                "same: compression gives no confidentiality"
            )
            for name in CALIBRATED
        },
    }
)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a codec costs a model: means over `tokens` predicted tokens, and the standard error of the divergence.

    `kl_nats` is KL(exact || rounded) of next-token distributions, `top1_agreement` the share of tokens whose most
    probable choice stays, `perplexity_ratio` the perplexity with the codec over that without.
    """

    kl_nats: float
    kl_error_nats: float
    top1_agreement: float
    perplexity_ratio: float
    tokens: int

    def sentence(self) -> str:
        """Return the figures in words."""
        return (
            f"measured over {self.tokens:,} tokens: divergence {self.kl_nats:.2e} +- {self.kl_error_nats:.0e} nats, "
            f"the same next token in {100 * self.top1_agreement:.1f} %, perplexity x {self.perplexity_ratio:.4f}"
        )


def require_codec(transfer: Transfer, *, parameters: int, loss: Loss | None, codec: str | None = None) -> None:
    """Refuse a lossy codec that the policy's own bounds exclude for a model; raises PolicyError.

    `loss` is what was measured for this model and codec, None where nothing was; of a calibrated codec it is that of
    the certificate for its artefact. The floor compares the mean plus two standard errors. `codec` is the one that is
    meant where the policy leaves the choice open.
    """
    name = codec or transfer.codec
    if name in CALIBRATED and loss is None and not transfer.allow_uncertified:
        raise PolicyError(
            f"codec {name} has no certificate for this model and artefact; run `splitinfer model measure SOURCE "
            f"--codec {name}`, or write allow_uncertified = true in [transfer]"
        )
    if name == "q4" and parameters < SMALL_MODEL_PARAMETERS and not transfer.allow_q4_small_models:
        raise PolicyError(
            f'transfer.codec = "q4" rounds a model of {parameters:,} parameters too hard (below one billion); write '
            'codec = "k6v4", or allow_q4_small_models = true in [transfer]'
        )
    if transfer.max_kl is None or name not in LOSSY:
        return
    if loss is None:
        raise PolicyError(
            f"transfer.max_kl bounds what codec {name} costs this model, and that was not measured here; run "
            f"`splitinfer model measure SOURCE --codec {name} --text FILE`"
        )
    worst = loss.kl_nats + 2 * loss.kl_error_nats
    # Written so that a figure that is not a number does not pass.
    if not worst <= transfer.max_kl:
        raise PolicyError(
            f"codec {name} costs this model up to {worst:.2e} nats, transfer.max_kl is {transfer.max_kl:g}; write a "
            'codec with more bits, or codec = "lossless"'
        )
