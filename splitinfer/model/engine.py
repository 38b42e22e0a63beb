"""The few calls through which `session` and `cloud` reach the model, so that a serving engine can stand here later.

LoadedModel -> Engine; prompt -> token ids -> CacheSnapshot -> tokens and text; both sides. One engine serves one
thread at a time: the caller holds a lock where there are more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from splitinfer.cache.growing import GrowingCache
from splitinfer.cache.snapshot import CacheSnapshot, layout_of
from splitinfer.errors import UsageError
from splitinfer.handoff import CacheLayout, ModelIdentity, Numerics, PromptTokens, SamplingParams, Segment
from splitinfer.model import layerwise, prompt
from splitinfer.model.decode import Decoder, FinishReason
from splitinfer.model.embeddings import (
    Rows,
    as_embeddings,
    embedding_rows,
    require_only_embeddings,
    row_bytes,
    rows_from,
    rows_to,
)
from splitinfer.model.layerwise import LayerwiseModel
from splitinfer.model.layerwise import Rows as MatrixRows
from splitinfer.model.loading import LoadedModel
from splitinfer.model.outer import loaded_names
from splitinfer.model.prefill import burn, prefill
from splitinfer.model.public_study import PublicStudy, study_public_text
from splitinfer.model.start_prefill import start_prefill
from splitinfer.model.stepwise import Step, StepwiseDecoder
from splitinfer.model.text import TextStream
from splitinfer.rounds import Operation

__all__ = ["Decoding", "Engine"]


class Decoding(Iterator[tuple[int, str]]):
    """The answer as it is made: pairs of token id and the text that this token made safe, possibly empty.

    After the last pair, `tail` is the text that had been held back; the pieces and the tail together are `text`.
    """

    def __init__(self, decoder: Decoder | StepwiseDecoder, stream: TextStream, *, count: Callable[[], None]) -> None:
        self._decoder = decoder
        self._stream = stream
        self._count = count
        self._token_ids: list[int] = []
        self._tail: str | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Return the ids so far, without the end-of-text token."""
        return tuple(self._token_ids)

    @property
    def tail(self) -> str:
        """Return the text that was held back; empty before the end."""
        return self._tail or ""

    @property
    def text(self) -> str:
        """Return all text so far."""
        return self._stream.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why decoding ended: "length", "end_of_text" or "stop"; None while it goes on."""
        return self._decoder.finish_reason

    def __next__(self) -> tuple[int, str]:
        """Make one token; raises ModelError where the logits are not finite."""
        before = len(self._stream.text)
        token_id = next(self._decoder, None)
        if token_id is None:
            self._tail = self._stream.finish() if self._tail is None else self._tail
            raise StopIteration
        self._token_ids.append(token_id)
        self._count()
        return token_id, self._stream.text[before:]

    def close(self) -> None:
        """Zero and drop the live cache; call it when stopping early. Idempotent."""
        self._decoder.close()


class Engine:
    """One loaded model. `prefilled_tokens` and `decoded_tokens` count the work done since it was made."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._layout = loaded.layout or layout_of(loaded.model)
        self._written: LayerwiseModel | None = None
        self._matrices: dict[tuple[int, str], MatrixRows] = {}
        self._sees_only_embeddings = False
        self.prefilled_tokens = 0
        self.decoded_tokens = 0

    @property
    def identity(self) -> ModelIdentity:
        """Return the digests that identify the model."""
        return self._loaded.identity

    @property
    def numerics(self) -> Numerics:
        """Return what must be equal on both sides for bit-equal results."""
        return self._loaded.numerics

    @property
    def layout(self) -> CacheLayout:
        """Return the cache layout, known before any prefill."""
        return self._layout

    @property
    def max_positions(self) -> int:
        """Return how many tokens, prompt and answer together, the model can hold."""
        return self._loaded.max_positions

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Return the ids that end the answer."""
        return frozenset(self._loaded.eos_token_ids)

    @property
    def vocabulary(self) -> int:
        """Return how many token ids the model has."""
        return int(self._loaded.model.get_input_embeddings().num_embeddings)

    @property
    def directory(self) -> Path:
        """Return the directory that the model was loaded from."""
        return self._loaded.directory

    @property
    def parameters(self) -> int:
        """Return how many parameters the model has."""
        return int(sum(part.numel() for part in self._loaded.model.parameters()))

    def tokenize(self, segments: Sequence[Segment]) -> PromptTokens:
        """Return the prompt's tokens; raises PromptError and its kinds."""
        return prompt.tokenize(self._loaded.tokenizer, segments)

    def continued(self, tokens: PromptTokens, literal: str) -> PromptTokens:
        """Return the prompt with a literal after it (see `prompt.continued`)."""
        return prompt.continued(self._loaded.tokenizer, tokens, literal)

    @functools.cached_property
    def text_token_ids(self) -> tuple[int, ...]:
        """Return, sorted, the ids that a text can have and the model has rows for."""
        return tuple(i for i in prompt.text_token_ids(self._loaded.tokenizer) if i < self.vocabulary)

    def embedding_rows(self, token_ids: Sequence[int]) -> Rows:
        """Return the input embedding's rows of these ids (see `embeddings.embedding_rows`)."""
        return embedding_rows(self._loaded.model, token_ids)

    @property
    def row_bytes(self) -> int:
        """Return how many bytes an embedding row has."""
        return row_bytes(self._loaded.model)

    def rows_to(self, rows: Rows) -> bytes:
        """Return rows as bytes (see `embeddings.rows_to`)."""
        return rows_to(self._loaded.model, rows)

    def rows_from(self, data: bytes) -> Rows:
        """Return the rows of bytes (see `embeddings.rows_from`)."""
        return rows_from(self._loaded.model, data)

    def study_public_text(self) -> PublicStudy:
        """Return caches of built-in public texts and what noise on them costs (see `public_study`)."""
        return study_public_text(self._loaded)

    def require_only_embeddings(self) -> None:
        """Refuse a model that looks at token ids beside their embeddings; raises UnsupportedModelError."""
        if not self._sees_only_embeddings:
            require_only_embeddings(self._loaded.model)
            self._sees_only_embeddings = True

    def prefill(
        self,
        token_ids: Sequence[int],
        *,
        steps: Sequence[tuple[int, int]],
        onto: CacheSnapshot | None = None,
        progress: Callable[[int], None] | None = None,
        rows: Rows | None = None,
    ) -> CacheSnapshot:
        """Run the steps of the prompt on an empty cache, or `onto` one of its first tokens (see `prefill.prefill`).

        With `rows`, one for each token of the prompt, the model sees those and no id.
        """
        self._require_matrices()
        snapshot = prefill(
            self._loaded.model,
            token_ids,
            steps=steps,
            onto=onto,
            layout=self._layout,
            progress=progress,
            ends_early=self._loaded.prefill_ends_early,
            embeddings=None if rows is None else as_embeddings(self._loaded.model, rows),
        )
        self.prefilled_tokens += sum(stop - start for start, stop in steps)
        return snapshot

    def start_prefill(
        self,
        token_ids: Sequence[int],
        *,
        steps: Sequence[tuple[int, int]],
        onto: CacheSnapshot | None = None,
        padded_tokens: int | None = None,
        base_tokens: int = 0,
        guard: AbstractContextManager[object] | None = None,
        progress: Callable[[int], None] | None = None,
        rows: Rows | None = None,
    ) -> GrowingCache:
        """Start a prefill in a thread of its own, padding time included (see `start_prefill.start_prefill`).

        Until it is over, `guard` keeps other uses of this engine out of its steps; without one nothing else may run.
        With `rows`, one for each token of the prompt, the model sees those and no id.
        """
        self._require_matrices()
        return start_prefill(
            self._loaded.model,
            token_ids,
            steps=steps,
            onto=onto,
            layout=self._layout,
            padded_tokens=padded_tokens,
            base_tokens=base_tokens,
            guard=guard,
            progress=progress,
            count=self._count_prefilled,
            ends_early=self._loaded.prefill_ends_early,
            embeddings=None if rows is None else as_embeddings(self._loaded.model, rows),
        )

    def burn(self, tokens: int) -> None:
        """Spend the time of `tokens` padding tokens and keep nothing; not counted as prefilled."""
        self._require_matrices()
        burn(self._loaded.model, tokens, ends_early=self._loaded.prefill_ends_early)

    def decode(self, snapshot: CacheSnapshot, *, last_token: int, params: SamplingParams) -> Decoding:
        """Continue from the snapshot with the prompt's last token; raises as `decode.Decoder` does."""
        self._require_matrices()
        stream = self.text_stream(params.stop)
        decoder = Decoder(
            self._loaded.model,
            snapshot,
            last_token=last_token,
            params=params,
            eos_token_ids=self.eos_token_ids,
            stopper=stream,
        )
        return Decoding(decoder, stream, count=self._count_decoded)

    def layerwise(self) -> LayerwiseModel:
        """Return one decode step written out over two callables; raises UnsupportedModelError (see `layerwise`)."""
        self._written = self._written or layerwise.layerwise(self._loaded.model)
        return self._written

    def matrices(self) -> dict[tuple[int, str], MatrixRows]:
        """Return the large matrices of that step by layer and name; raises UnsupportedModelError."""
        self._require_matrices()
        self._matrices = self._matrices or layerwise.matrices(self._loaded.model)
        return self._matrices

    def operations(self) -> dict[tuple[int, Operation], MatrixRows]:
        """Return the same by layer and operation."""
        return {(layer, Operation[name.upper()]): matrix for (layer, name), matrix in self.matrices().items()}

    def operation_shapes(self) -> dict[tuple[int, Operation], tuple[int, int]]:
        """Return [outputs, inputs] of each of them, which need not be loaded; raises UnsupportedModelError."""
        shapes = layerwise.matrix_shapes(self._loaded.model).items()
        return {(layer, Operation[name.upper()]): shape for (layer, name), shape in shapes}

    @property
    def loaded_names(self) -> tuple[str, ...]:
        """Return the names of the parameters that are in memory, sorted."""
        return loaded_names(self._loaded.model)

    def _require_matrices(self) -> None:
        if not self._loaded.has_matrices:
            raise UsageError(
                "this model was loaded without its large matrices, for a policy whose cloud applies them; load it anew "
                "to compute with it here"
            )

    def decode_by(self, step: Step, *, last_token: int, position: int, params: SamplingParams) -> Decoding:
        """Decode with a step of which parts are computed elsewhere (see `stepwise.StepwiseDecoder`)."""
        stream = self.text_stream(params.stop)
        decoder = StepwiseDecoder(
            step,
            last_token=last_token,
            position=position,
            params=params,
            eos_token_ids=self.eos_token_ids,
            stopper=stream,
        )
        return Decoding(decoder, stream, count=self._count_decoded)

    def text_stream(self, stop: Sequence[str] = ()) -> TextStream:
        """Return a new incremental text, for tokens that were decoded elsewhere."""
        return TextStream(self._loaded.tokenizer, stop)

    def _count_prefilled(self, tokens: int) -> None:
        self.prefilled_tokens += tokens

    def _count_decoded(self) -> None:
        self.decoded_tokens += 1
