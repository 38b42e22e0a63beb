"""Which attack is played from which exposure: the closed table of attacks on one run. Evaluation.

An attack sees an `Exposure` and the public weights; the length of the prompt is granted to it, and what stands in clear
is given. Attacks that a seat's exposure does not allow are left out, and `prior` is always there: what is guessed from
public text and texts of the same kind alone, which is chance for that seat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from splitinfer.codec.transform import Artefact
from splitinfer.errors import UsageError
from splitinfer.evaluation.attacks.collision import Thresholds, calibrate, collide
from splitinfer.evaluation.attacks.dictionary import LayerZeroDictionary
from splitinfer.evaluation.attacks.embedding_inversion import embedding_table, invert_embeddings
from splitinfer.evaluation.attacks.injection import inject
from splitinfer.evaluation.attacks.inversion import invert
from splitinfer.evaluation.attacks.likelihood import (
    RELATIVE_ROUNDING,
    CacheLikelihood,
    CacheNoise,
    EmbeddingLikelihood,
    Variances,
    codec_variances,
    of_heads,
    rounding_variances,
)
from splitinfer.evaluation.attacks.observed import CapturedCache
from splitinfer.evaluation.attacks.posterior import Beam, Recovered, recover
from splitinfer.evaluation.attacks.prefixes import Prefixes, rows_of
from splitinfer.evaluation.attacks.text_prior import TextPrior
from splitinfer.evaluation.capture import Exposure
from splitinfer.evaluation.prompts import make_prompts
from splitinfer.model.loading import LoadedModel
from splitinfer.model.prompt import tokenize
from trust_models.codecs import LOSSY

__all__ = ["ATTACKS", "Attacker", "NoEvidence", "require_attacks"]

_CALIBRATION_TOKENS = 48
_NOISED_BEAM = 16
# Behind noise on rows many tokens explain a position well; the shortlist is the first layer's and the prior's.
_NOISED_ROWS_BEAM = Beam(width=4, shortlist=64)
# No evaluation has a negative seed.
_OWN_PROMPTS, _ATTACKERS_SEED = 256, -1


class NoEvidence:
    """The likelihood of a seat that sees nothing: all candidates are equal, so that the prior alone decides."""

    def scores(self, prefixes: Prefixes, candidates: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return zeros."""
        return torch.zeros(candidates.shape, dtype=torch.float64)

    def is_good(self, position: int, best: float, second: float) -> bool:  # noqa: ARG002
        """Never look further: there is nothing to see."""
        return True


class Attacker:
    """Public weights, and what follows from them alone; one for a model. `artefact` is that of calibrated codecs.

    `residuals` are those of every cache that was inverted to its inputs.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        artefact: Artefact | None = None,
        beam: Beam | None = None,
        relative_rounding: float | None = None,
    ) -> None:
        self.loaded, self._artefact = loaded, artefact
        self._rounded: dict[str, Variances] = {}
        self.beam = beam or Beam()
        self.residuals: list[float] = []
        self._inverted: tuple[Exposure, torch.Tensor] | None = None
        self._guessed: tuple[tuple[dict[int, int], int], Recovered] | None = None
        self._rounding = RELATIVE_ROUNDING if relative_rounding is None else relative_rounding

    @property
    def wide_beam(self) -> Beam:
        """Return the beam where the prior decides much: the same for what is seen through noise and for chance."""
        return Beam(width=max(self.beam.width, _NOISED_BEAM), prior_weight=self.beam.prior_weight)

    @cached_property
    def dictionary(self) -> LayerZeroDictionary:
        """The first layer's rows of every token."""
        return LayerZeroDictionary(self.loaded.model)

    @cached_property
    def table(self) -> torch.Tensor:
        """The model's inputs of all tokens."""
        return embedding_table(self.loaded.model)

    @cached_property
    def texts(self) -> TextPrior:
        """Prompts of the same kind as the victim's, and none of them: drawn from another seed."""
        tokenizer = self.loaded.tokenizer
        own = [
            tokenize(tokenizer, prompt.segments).token_ids
            for prompt in make_prompts(_OWN_PROMPTS, seed=_ATTACKERS_SEED)
        ]
        return TextPrior(own, vocabulary=self.loaded.model.get_input_embeddings().num_embeddings)

    @cached_property
    def own_tokens(self) -> tuple[int, ...]:
        """Tokens of the attacker's own, to calibrate with: drawn at random, not the victim's kind of text."""
        draw = torch.Generator().manual_seed(0)
        vocabulary = self.loaded.model.get_input_embeddings().num_embeddings
        return tuple(torch.randint(0, vocabulary, (_CALIBRATION_TOKENS,), generator=draw).tolist())

    def _codec_variances(self, codec: str) -> Variances:
        if codec not in self._rounded:
            found = codec_variances(self.loaded.model, codec, token_ids=self.own_tokens, artefact=self._artefact)
            self._rounded[codec] = found
        return self._rounded[codec]

    def variances(self, exposure: Exposure, capture: CapturedCache) -> Variances:
        """Return the variances of a captured cache: what rounding leaves, and what noise was added on purpose."""
        is_lossy = exposure.codec in LOSSY
        bare = {} if is_lossy else rounding_variances(capture, relative=self._rounding)
        rounded = self._codec_variances(exposure.codec) if is_lossy else bare
        if exposure.cache_noise is None:
            return rounded
        added = exposure.cache_noise.variances(capture, first=exposure.first_private)
        return {key: added[key] + rounded[key] for key in rounded if key in added}

    def first_layer(self, exposure: Exposure, seen: CapturedCache) -> torch.Tensor | None:
        """Return how well every token explains the first layer's noised rows; None where these were not seen."""
        if exposure.cache_noise is None or 0 not in seen.layers:
            return None
        variances, skip = self.variances(exposure, seen), frozenset(exposure.known)
        norms = exposure.cache_noise.clip_norms
        return self.dictionary.scores(seen, variances, clip_norms=norms, skip=skip)

    def thresholds(self, layer: int, *, exposure: Exposure) -> Thresholds:
        """Return collision+'s thresholds, measured on the attacker's own tokens, noised as the victim's were."""
        ids, model = list(self.own_tokens), self.loaded.model
        rows = self.table[ids]
        draw = torch.Generator().manual_seed(1)
        if exposure.noise_sigma is not None:
            rows = rows + exposure.noise_sigma * torch.randn(rows.shape, generator=draw)
        own = CapturedCache.of_rows(rows_of(model, rows, last_layer=layer))
        if exposure.cache_noise is not None:
            own = _noised(own, self.variances(exposure, exposure.cache or own), draw)
        return calibrate(model, own, layer=layer, token_ids=ids)

    def guess(self, public: Mapping[int, int], tokens: int) -> Recovered:
        """Return what is guessed of a prompt from public text alone; all seats of one prompt share the answer."""
        asked = dict(public), tokens
        if self._guessed is None or self._guessed[0] != asked:
            found = recover(
                self.loaded.model, NoEvidence(), tokens=tokens, known=public, beam=self.wide_beam, texts=self.texts
            )
            self._guessed = asked, found
        return self._guessed[1]

    def noised_inputs(self, exposure: Exposure) -> torch.Tensor | None:
        """Return the noised embeddings of an exposure: those that were seen, or those that its cache was made from."""
        if exposure.noise_sigma is None or exposure.embeddings is not None:
            return exposure.embeddings
        if exposure.cache is None:
            return None
        if self._inverted is None or self._inverted[0] is not exposure:
            found = invert_embeddings(self.loaded.model, exposure.cache, known=exposure.known)
            self._inverted = exposure, found.rows
            self.residuals.append(found.residual)
        return self._inverted[1]

    def noised_score(self, exposure: Exposure, token_ids: Sequence[int]) -> float:
        """Return the log-density of a whole prompt's noised embeddings under these ids, up to a constant."""
        inputs = self.noised_inputs(exposure)
        if inputs is None or exposure.likely_sigma is None:
            return 0.0
        gaps = inputs.double() - self.table[list(token_ids[: len(inputs)])].double()
        return -float(gaps.square().sum()) / (2 * exposure.likely_sigma**2)

    def by_layer(self, exposure: Exposure, layer: int, tokens: int) -> Recovered:
        """Attack one layer of a cache that nobody noised, as if no other had been seen."""
        if exposure.cache is None:
            raise UsageError("this seat saw no cache; there is no layer to attack")
        return _by_rows(self, exposure, exposure.cache.only(layers=[layer]), tokens)


def _prior(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:
    return attacker.guess(exposure.public, tokens)


def _read(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    if not exposure.in_clear:
        return None
    return Recovered(tuple(exposure.in_clear.get(place, -1) for place in range(tokens)))


def _answer(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    return Recovered(exposure.answered) if exposure.answered else None


def _dictionary(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    if exposure.cache is None or exposure.cache.find(0, "values") is None:
        return None
    return _with_clear(attacker.dictionary.recover(exposure.cache), exposure)


def _posterior(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:
    if exposure.cache is None or exposure.is_noised:
        return None
    # The first layer costs least, and where it was rounded away all of them together say more.
    seen = exposure.cache if exposure.codec in LOSSY else exposure.cache.only(layers=[min(exposure.cache.layers)])
    return _by_rows(attacker, exposure, seen, tokens)


def _posterior_last_layer(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:
    if exposure.cache is None or exposure.is_noised:
        return None
    return attacker.by_layer(exposure, max(exposure.cache.layers), tokens)


def _denoise(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:
    """Undo the deterministic part, then weigh the noise against the prior; noise on rows has none to undo."""
    if exposure.cache_noise is not None and exposure.cache is not None:
        return _by_rows(attacker, exposure, exposure.cache, tokens, beam=_NOISED_ROWS_BEAM)
    inputs = attacker.noised_inputs(exposure)
    if inputs is None or exposure.likely_sigma is None:
        return None
    likelihood = EmbeddingLikelihood(inputs, attacker.table, sigma=exposure.likely_sigma)
    model, known = attacker.loaded.model, exposure.known
    found = recover(model, likelihood, tokens=len(inputs), known=known, beam=attacker.wide_beam, texts=attacker.texts)
    return _with_clear(found, exposure)


def _nearest_neighbour(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    if exposure.cache is not None and exposure.cache_noise is not None:
        scores = attacker.first_layer(exposure, exposure.cache)
        return None if scores is None else _with_clear(Recovered(tuple(scores.argmax(1).tolist())), exposure)
    inputs = attacker.noised_inputs(exposure)
    if inputs is None or exposure.noise_sigma is None:
        return None
    nearest = torch.cdist(inputs.float(), attacker.table).argmin(1)
    return _with_clear(Recovered(tuple(nearest.tolist())), exposure)


def _by_rows(
    attacker: Attacker, exposure: Exposure, seen: CapturedCache, tokens: int, *, beam: Beam | None = None
) -> Recovered:
    noise = exposure.cache_noise or CacheNoise()
    likelihood = CacheLikelihood(seen, attacker.variances(exposure, seen), clip_norms=noise.clip_norms)
    hints = attacker.first_layer(exposure, seen)
    return recover(
        attacker.loaded.model,
        likelihood,
        tokens=tokens,
        known=exposure.known,
        beam=beam or attacker.beam,
        texts=attacker.texts,
        hints=hints,
    )


def _noised(own: CapturedCache, variances: Variances, draw: torch.Generator) -> CapturedCache:
    """Noise a capture of the attacker's own as the victim's was."""
    return own.mapped(
        lambda slab: (
            slab.rows
            + of_heads(variances[slab.layer, slab.part], slab).sqrt().float()[:, None, None]
            * torch.randn(slab.rows.shape, generator=draw)
        )
    )


def _collision(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    if exposure.cache is None:
        return None
    found = collide(attacker.loaded.model, exposure.cache, layer=min(exposure.cache.layers))
    return _with_clear(found, exposure)


def _collision_plus(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    if exposure.cache is None:
        return None
    layer = min(exposure.cache.layers)
    thresholds = attacker.thresholds(layer, exposure=exposure)
    found = collide(attacker.loaded.model, exposure.cache, layer=layer, thresholds=thresholds, never_stops=True)
    return _with_clear(found, exposure)


def _inversion(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    if exposure.cache is None or exposure.cache.find(0, "keys") is None:
        return None
    return _with_clear(invert(attacker.loaded.model, exposure.cache), exposure)


def _injection(attacker: Attacker, exposure: Exposure, tokens: int) -> Recovered | None:  # noqa: ARG001
    return None if exposure.snapshot is None else inject(attacker.loaded, exposure.snapshot)


def _with_clear(found: Recovered, exposure: Exposure) -> Recovered:
    """Put what needs no attack in its place: public text, and the last token, which goes up beside the cache."""
    known = exposure.known
    length = max([len(found.token_ids), *(place + 1 for place in known)])
    ids = [*found.token_ids, *[-1] * (length - len(found.token_ids))]
    for place, token in known.items():
        ids[place] = token
    return Recovered(tuple(ids), found.fits, found.candidates)


@dataclass(frozen=True, slots=True)
class AttackRow:
    """One attack: what it needs, in words, and how it is run; it returns None where the exposure does not allow it.

    What it finds has the prompt's positions, or is a text without any.
    """

    needs: str
    run: Callable[[Attacker, Exposure, int], Recovered | None]
    has_positions: bool = True


ATTACKS: Mapping[str, AttackRow] = {
    "prior": AttackRow("nothing", _prior),
    "read": AttackRow("token ids in clear", _read),
    "answer": AttackRow("the answer, decoded by the seat itself", _answer, has_positions=False),
    "dictionary": AttackRow("values of layer 0", _dictionary),
    "posterior": AttackRow("rows of any layer", _posterior),
    "posterior-last-layer": AttackRow("rows of the last layer", _posterior_last_layer),
    "denoise": AttackRow("noised embeddings, a cache of them, or a noised cache", _denoise),
    "nearest": AttackRow("noised embeddings, a cache of them, or a noised first layer", _nearest_neighbour),
    "collision": AttackRow("keys and values of one layer", _collision),
    "collision-plus": AttackRow("keys and values of one layer", _collision_plus),
    "inversion": AttackRow("keys and values of layer 0", _inversion),
    "injection": AttackRow("a whole cache that can be loaded", _injection, has_positions=False),
}


def require_attacks(names: str) -> tuple[str, ...]:
    """Return the attacks of a comma-separated list, or all; raises UsageError for an unknown one."""
    if names == "all":
        return tuple(ATTACKS)
    wanted = tuple(name.strip() for name in names.split(","))
    unknown = [name for name in wanted if name not in ATTACKS]
    if unknown:
        raise UsageError(f"there is no attack {unknown[0]!r}; write all, or some of {', '.join(ATTACKS)}")
    return wanted
