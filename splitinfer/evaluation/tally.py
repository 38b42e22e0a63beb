"""Counts what attacks recover, by seat and attack: captured runs -> figures. Evaluation.

Every attack is played on every run, closed-set confirmation asks for the personal value among look-alikes, and a few
caches are attacked a layer at a time.
"""

from __future__ import annotations

import time

from splitinfer.evaluation.attacks.confirmation import cache_score, confirm
from splitinfer.evaluation.attacks.posterior import Recovered
from splitinfer.evaluation.capture import Captured, Exposure, Seat, private_positions
from splitinfer.evaluation.intervals import Rate
from splitinfer.evaluation.metrics import by_tenth, recovery
from splitinfer.evaluation.playbook import ATTACKS, Attacker
from splitinfer.evaluation.prompts import lookalikes
from splitinfer.evaluation.report import AttackFigures
from splitinfer.evaluation.settings import Settings
from splitinfer.model.prompt import tokenize

__all__ = ["Tally"]


class Tally:
    """Sums over prompts, by seat and attack."""

    def __init__(self, attacker: Attacker, settings: Settings) -> None:
        self._attacker, self._settings = attacker, settings
        self._rows: dict[tuple[Seat, str], list[AttackFigures]] = {}
        self.confirmed: dict[Seat, Rate] = {}
        self.layers: dict[int, Rate] = {}
        self.right = Rate(0, 0)
        self.runs: list[Captured] = []

    def add(self, captured: Captured) -> None:
        """Play every attack of every seat on one run."""
        self.runs.append(captured)
        self.right += Rate(captured.prompt.secret in captured.answer.text, 1)
        for seat in self._settings.seats:
            exposure = captured.exposures[seat]
            for name in self._settings.attacks:
                self._play(seat, name, exposure, captured)
            self._confirm(seat, exposure, captured)
            if len(self.runs) <= self._settings.layer_prompts:
                self._by_layer(exposure, captured)

    def figures(self) -> tuple[AttackFigures, ...]:
        """Return the sums, one a seat and attack."""
        return tuple(AttackFigures.sum(rows) for rows in self._rows.values())

    def _play(self, seat: Seat, name: str, exposure: Exposure, captured: Captured) -> None:
        began = time.perf_counter()
        # The length is granted: what it takes to guess it is the business of traffic analysis.
        found = ATTACKS[name].run(self._attacker, exposure, len(captured.tokens.token_ids))
        if found is not None:
            row = self._figures(seat, name, found, captured, time.perf_counter() - began)
            self._rows.setdefault((seat, name), []).append(row)

    def _figures(self, seat: Seat, name: str, found: Recovered, captured: Captured, seconds: float) -> AttackFigures:
        tokenizer = self._attacker.loaded.tokenizer
        places, true = self._private(captured), captured.tokens.token_ids
        has_positions = ATTACKS[name].has_positions
        shown = [found.token_ids[place] for place in places if place < len(found.token_ids)]
        shown = [token for token in (shown if has_positions else found.token_ids) if token >= 0]
        result = recovery(
            found.token_ids,
            true,
            # What is found without positions is judged as a text: no token of it is at its place or elsewhere.
            private=places if has_positions else (),
            found_text=tokenizer.decode(shown),
            true_text=tokenizer.decode([true[place] for place in places]),
            secret=captured.prompt.secret,
        )
        tenths = by_tenth(found.token_ids, true, private=places) if has_positions else ()
        return AttackFigures(
            seat.value, name, result.tokens, result.exact, result.personal_data, result.rouge_l, seconds, 1, tenths
        )

    def _private(self, captured: Captured) -> list[int]:
        special = frozenset(self._attacker.loaded.tokenizer.all_special_ids)
        return sorted(private_positions(captured.tokens, control_ids=special))

    def _by_layer(self, exposure: Exposure, captured: Captured) -> None:
        """Attack each layer of a cache alone; what is noised is attacked as a whole."""
        if exposure.cache is None or exposure.is_noised:
            return
        true = captured.tokens.token_ids
        for layer in exposure.cache.layers:
            found = self._attacker.by_layer(exposure, layer, len(true)).token_ids
            hits = Rate(0, 0)
            for place in self._private(captured):
                hits += Rate(found[place] == true[place], 1)
            self.layers[layer] = self.layers.get(layer, Rate(0, 0)) + hits

    def _confirm(self, seat: Seat, exposure: Exposure, captured: Captured) -> None:
        values = lookalikes(captured.prompt, self._settings.lookalikes, seed=self._settings.seed)
        scores = (
            [self._score(exposure, captured, value) for value in values] if _sees(exposure) else [0.0] * len(values)
        )
        ranked = confirm(scores, true_index=values.index(captured.prompt.secret))
        self.confirmed[seat] = self.confirmed.get(seat, Rate(0, 0)) + Rate(ranked.chance_in_first(1), 1)

    def _score(self, exposure: Exposure, captured: Captured, value: str) -> float:
        ids = self._attacker_ids(captured, value)
        if exposure.noise_sigma is not None:
            return self._attacker.noised_score(exposure, ids) if len(ids) == exposure.tokens else float("-inf")
        if exposure.cache is not None:
            # One layer decides, but through noise all of them say more.
            layers = exposure.cache.layers if exposure.is_noised else [min(exposure.cache.layers)]
            seen = exposure.cache.only(layers=layers)
            norms = exposure.cache_noise.clip_norms if exposure.cache_noise else None
            variances = self._attacker.variances(exposure, seen)
            score = cache_score(self._attacker.loaded.model, seen, variances, clip_norms=norms)
            return score(ids[: exposure.cache.tokens]) if len(ids) == exposure.tokens else float("-inf")
        # In clear: a candidate is possible if it agrees wherever a token was seen.
        agrees = all(place < len(ids) and ids[place] == token for place, token in exposure.in_clear.items())
        return 0.0 if agrees else float("-inf")

    def _attacker_ids(self, captured: Captured, value: str) -> tuple[int, ...]:
        return (
            tokenize(self._attacker.loaded.tokenizer, captured.prompt.with_secret(value).segments).token_ids
            + captured.appended
        )


def _sees(exposure: Exposure) -> bool:
    return exposure.cache is not None or exposure.embeddings is not None or bool(exposure.in_clear)
