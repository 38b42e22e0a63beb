"""`homomorphic`: the prompt's cache goes to the cloud as ciphertexts, and each step's attention with it; on the device.

With `linear = "cloud"` the cloud applies the large matrices too, on ciphertexts, and the prompt is computed so as well,
one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from splitinfer.cache.snapshot import CacheSnapshot
from splitinfer.device import Device
from splitinfer.errors import PromptTooLongError, UsageError
from splitinfer.handoff import PromptTokens, SamplingParams
from splitinfer.homomorphic.bounds import Growth, bytes_up_bound
from splitinfer.homomorphic.device import DeviceHalf, LinearShapes
from splitinfer.homomorphic.linear_plan import LinearShape
from splitinfer.homomorphic.parameters import parameters_for
from splitinfer.homomorphic.planning import AttentionPlan, AttentionShape, plan_attention
from splitinfer.model.engine import Engine
from splitinfer.model.layerwise import LayerwiseModel, Linear, LocalLinear, Rows, cached_rows
from splitinfer.model.stepwise import Step
from splitinfer.rounds import Exchange, Operation
from trust_models.rounds import Homomorphic

__all__ = ["HomomorphicWork"]


@dataclass(frozen=True, slots=True)
class HomomorphicWork:
    """One run; implements `work.Work`."""

    rules: Homomorphic
    engine: Engine
    model: LayerwiseModel = field(repr=False)
    shape: AttentionShape
    plan: AttentionPlan
    linears: LinearShapes
    growth: Growth
    token_ids: tuple[int, ...] = field(repr=False)
    progress: Callable[[int], None] | None = None

    @classmethod
    def of(
        cls,
        device: Device,
        prompt: PromptTokens,
        params: SamplingParams,
        *,
        progress: Callable[[int], None] | None,
    ) -> HomomorphicWork:
        """Plan a run; raises UnsupportedModelError, CryptoParameterError, PromptTooLongError."""
        rules, engine, held = device.policy.homomorphic, device.engine, len(prompt.token_ids) - 1
        if rules.linear == "cloud" and held + 1 > rules.max_prompt_tokens:
            raise PromptTooLongError(
                f"the prompt has {held + 1} tokens, and homomorphic.max_prompt_tokens is {rules.max_prompt_tokens}: "
                'each is computed on ciphertexts; shorten it, raise the bound, or write linear = "device"'
            )
        model, parameters = engine.layerwise(), parameters_for(rules.profile)
        shape = AttentionShape(len(model.layers), model.heads, model.kv_heads, model.head_dim)
        # A prompt that is computed at the cloud is so under encryption, its public text too.
        is_in_clear = rules.public == "plaintext" and rules.linear == "device"
        public = min(prompt.leading_public_tokens, held) if is_in_clear else 0
        # Where a public text leads, the private rest is short or fills tiles of its own.
        plan = plan_attention(shape, slots=parameters.slots, tokens=public or max(held, 1), is_encrypted=not public)
        return cls(
            rules=rules,
            engine=engine,
            model=model,
            shape=shape,
            plan=plan,
            linears=_shapes(engine) if rules.linear == "cloud" else {},
            growth=Growth(public, held - public, params.max_new_tokens),
            token_ids=prompt.token_ids,
            progress=progress,
        )

    @property
    def packing(self) -> str:
        """Return the profile."""
        return f"ckks-{self.rules.profile}"

    @property
    def tokens_bucket(self) -> int:
        """Return the tokens of all tiles that the prompt fills, which is all that the cloud learns of its length."""
        return self.growth.prompt_tiles(self.plan) * self.plan.tile_tokens

    @property
    def rounds_bytes(self) -> int:
        """Return the most bytes that go up."""
        return bytes_up_bound(
            parameters_for(self.rules.profile),
            self.plan,
            self.linears,
            self.growth,
            steps=self.growth.new_tokens + (len(self.token_ids) if self.prefills else 0),
        )

    @property
    def prefills(self) -> bool:
        """Tell whether the prompt is computed with the cloud's matrices."""
        return self.rules.linear == "cloud"

    @contextmanager
    def begin(self, exchange: Exchange, cache: CacheSnapshot | None) -> Iterator[Step]:
        """Make the session's keys, upload the prompt's cache, and lend the step."""
        with DeviceHalf(self.shape, exchange, plan=self.plan, profile=self.rules.profile, linears=self.linears) as half:
            linear = half.linear if self.prefills else LocalLinear(self.engine.matrices()).linear
            if self.prefills:
                self._prefill(half, linear)
            elif cache is not None:
                self._upload(half, cache)
            else:
                raise UsageError("there is no cache of the prompt to upload")

            def step(token_id: int, position: int) -> Rows:
                return self.model.step(token_id, position, attend=half.attend, linear=linear)

            yield step

    def _upload(self, half: DeviceHalf, cache: CacheSnapshot) -> None:
        public, kept = self.growth.public_tokens, self.growth.kept_tokens(self.plan)
        for layer, (keys, values) in enumerate(cached_rows(cache)):
            whole = len(keys) - kept
            half.load(layer, keys[:public], values[:public], is_public=True)
            half.load(layer, keys[public:whole], values[public:whole])
            # Copies: the snapshot is wiped, or goes on in another run.
            half.keep(layer, keys[whole:].copy(), values[whole:].copy())

    def _prefill(self, half: DeviceHalf, linear: Linear) -> None:
        for position, token_id in enumerate(self.token_ids[:-1]):
            self.model.feed(token_id, position, attend=half.attend, linear=linear)
            if self.progress is not None:
                self.progress(position + 1)
        half.seal_tail()


def _shapes(engine: Engine) -> dict[tuple[int, Operation], LinearShape]:
    return {key: LinearShape(*shape) for key, shape in engine.operation_shapes().items()}
