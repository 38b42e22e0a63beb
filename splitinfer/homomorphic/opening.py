"""The first record of a session: what both sides must agree on; Opening <-> bytes; both sides, public."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitinfer.errors import CryptoParameterError, ManifestError
from splitinfer.homomorphic.parameters import Parameters, parameters_for
from splitinfer.homomorphic.planning import AttentionPlan, AttentionShape

__all__ = ["Opening", "read_opening"]

_MAX_OPENING_BYTES = 4096


class Opening(BaseModel):
    """Profile, shape and plan by which the device packs. `steps` are the rotations that its keys allow."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    profile: str = Field(max_length=32)
    layers: int = Field(ge=1, le=512)
    heads: int = Field(ge=1, le=512)
    kv_heads: int = Field(ge=1, le=512)
    head_dim: int = Field(ge=2, le=512)
    layout: Literal["halves", "pairs"]
    replication: int = Field(ge=1, le=512)
    rows: int = Field(ge=1, le=4096)
    key_babies: int = Field(ge=1, le=512)
    value_babies: int = Field(ge=1, le=512)
    steps: int = Field(ge=0, le=1024)
    uses_linears: bool

    @classmethod
    def of(cls, parameters: Parameters, plan: AttentionPlan, *, steps: int, uses_linears: bool) -> Opening:
        """Describe a session."""
        shape = plan.shape
        return cls(
            profile=parameters.profile,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            layout=plan.layout,
            replication=plan.replication,
            rows=plan.rows,
            key_babies=plan.key_babies,
            value_babies=plan.value_babies,
            steps=steps,
            uses_linears=uses_linears,
        )

    def to_bytes(self) -> bytes:
        """Return the opening as JSON."""
        return self.model_dump_json().encode()

    def agreed(self) -> tuple[Parameters, AttentionPlan]:
        """Return parameters and plan; raises ManifestError where they contradict each other."""
        try:
            parameters = parameters_for(self.profile)
            shape = AttentionShape(self.layers, self.heads, self.kv_heads, self.head_dim)
        except CryptoParameterError as error:
            raise ManifestError(f"the session's opening cannot be used: {error}") from error
        plan = AttentionPlan(
            shape, parameters.slots, self.layout, self.replication, self.rows, self.key_babies, self.value_babies
        )
        powers = (plan.rows, plan.key_babies, plan.value_babies)
        fits = plan.rows * plan.dims <= plan.slots and max(plan.key_babies, plan.value_babies) <= plan.dims
        if not fits or any(power & (power - 1) for power in powers) or shape.group % plan.replication:
            raise ManifestError("the session's opening states a plan that does not fit its shape")
        return parameters, plan


def read_opening(data: bytes) -> Opening:
    """Parse an opening; raises ManifestError, which repeats nothing of it."""
    if len(data) > _MAX_OPENING_BYTES:
        raise ManifestError(f"the session's opening is above {_MAX_OPENING_BYTES} bytes")
    try:
        return Opening.model_validate_json(data)
    except ValidationError:
        raise ManifestError("the session's opening is malformed or of another version") from None
