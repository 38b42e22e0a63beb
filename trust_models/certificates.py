"""What a calibrated codec was measured to cost one model through one artefact: facts as data, no IO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from trust_models.codecs import Loss

__all__ = ["Certificate", "Paired"]


@dataclass(frozen=True, slots=True)
class Paired:
    """Questions answered on the exact cache and on the moved one, the same ones.

    `accuracy` is the share whose answer is exactly right on the exact cache, `accuracy_drop` by how much less it is on
    the moved one; `nll_rise` is the answer's mean rise in negative log-likelihood, nats a token. Errors are standard
    errors of the paired differences.
    """

    questions: int
    accuracy: float
    accuracy_drop: float
    accuracy_drop_error: float
    nll: float
    nll_rise: float
    nll_rise_error: float

    def sentence(self) -> str:
        """Return the figures in words."""
        return (
            f"{self.questions:,} questions: {100 * self.accuracy:.1f} % right exactly, "
            f"{100 * self.accuracy_drop:+.1f} +- {100 * self.accuracy_drop_error:.1f} points fewer, "
            f"nll {self.nll_rise:+.4f} +- {self.nll_rise_error:.4f}"
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """One level's certificate. None stands for what could not be measured on this model.

    `loss` is on texts of the kind that the model reads, `long` on contexts four times as long as calibration's, or as
    long as the model bears; `foreign` on a domain that calibration did not see. `answers` are real questions,
    `needles` and `digits` made ones: one fact in a long text, and digits to be repeated. `saturation` is the share of
    coded values that lie more than two deviations beyond the outermost centroid of their table.
    """

    loss: Loss
    long: Loss | None
    foreign: Loss | None
    answers: Paired | None
    needles: Paired
    digits: Paired
    saturation: float
    long_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """Return what `to_json` wrote, or None for anything else."""
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(cls)}:
            return None
        parts = {name: _part(Loss, value[name]) for name in ("loss", "long", "foreign")}
        parts |= {name: _part(Paired, value[name]) for name in ("answers", "needles", "digits")}
        numbers = (value["saturation"], value["long_tokens"])
        if None in (parts["loss"], parts["needles"], parts["digits"]) or not all(map(_is_number, numbers)):
            return None
        return cls(**parts, saturation=float(numbers[0]), long_tokens=int(numbers[1]))


def _part(kind: type[Any], value: object) -> Any:
    if not isinstance(value, Mapping) or set(value) != {field.name for field in fields(kind)}:
        return None
    return kind(**value) if all(map(_is_number, value.values())) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
