"""What a stored cache is of: a labelled prompt -> PublicPrefix -> a file name that tells nothing; on the device.

The only module that makes a `PublicPrefix`, and only of tokens that are public: the store takes nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from splitinfer.errors import UsageError
from splitinfer.handoff import CacheLayout, ModelIdentity, Numerics, PromptTokens
from splitinfer.sealing.encoding import canonical, prefixed

__all__ = ["PublicPrefix", "public_prefix"]


@dataclass(frozen=True, slots=True)
class PublicPrefix:
    """The leading public tokens of a prompt and everything that their cache depends on, who computed it included.

    A cache is used again only where all of it is equal; `numerics` are the device's own, `codec` is the transfer's.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    steps: tuple[tuple[int, int], ...]
    model: ModelIdentity
    numerics: Numerics
    layout: CacheLayout
    codec: str
    recipient_identity_sha256: str

    def name(self, name_key: bytes) -> str:
        """Return the file name, 64 hex digits: HMAC-SHA256 of all fields, so that without the key it tells nothing."""
        fields = {
            "codec": self.codec,
            "layout": asdict(self.layout),
            "model": asdict(self.model),
            "numerics": asdict(self.numerics),
            "recipient": self.recipient_identity_sha256,
            "steps": self.steps,
        }
        tokens = struct.pack(f">{len(self.token_ids)}I", *self.token_ids)
        return hmac.digest(name_key, prefixed(canonical(fields)) + tokens, hashlib.sha256).hex()


def public_prefix(
    prompt: PromptTokens,
    *,
    steps: Sequence[tuple[int, int]],
    model: ModelIdentity,
    numerics: Numerics,
    layout: CacheLayout,
    codec: str,
    recipient_identity_sha256: str,
) -> PublicPrefix:
    """Take the tokens that `steps` cover; raises UsageError where they are not the leading public ones."""
    tokens = steps[-1][1] if steps else 0
    if not 0 < tokens <= prompt.leading_public_tokens:
        raise UsageError("only the public tokens that stand first in a prompt may be stored")
    return PublicPrefix(
        token_ids=prompt.token_ids[:tokens],
        steps=tuple(steps),
        model=model,
        numerics=numerics,
        layout=layout,
        codec=codec,
        recipient_identity_sha256=recipient_identity_sha256,
    )
