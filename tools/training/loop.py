"""The training loop: a process a core, equal batches, gradients added up, checkpoints that a later run goes on from."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tools.training.initialisation import initialise
from tools.training.muon import Muon
from tools.training.network import Network
from tools.training.recipe import Recipe
from tools.training.rows import Aim, Batch, Encoder, collated

__all__ = ["Trainer", "apart", "look_losses", "token_loss"]


def token_loss(hidden: Tensor, batch: Batch, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted loss, and which tokens of answers were the most likely ones."""
    weights, wanted = batch.weights[:, 1:], batch.ids[:, 1:]
    counted = weights > 0
    logits = F.linear(hidden[:, :-1][counted], embedding)
    losses = F.cross_entropy(logits, wanted[counted], reduction="none")
    shares = weights[counted]
    hits = (logits.argmax(-1) == wanted[counted])[shares >= 1]
    return (losses * shares).sum() / shares.sum(), hits


def look_losses(query: Tensor, key: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
    """Return for each query that has targets how unlikely attention is to fall on one of them.

    `query` and `key` are [rows, tokens, head_dim], `queries` [rows, n], `targets` [rows, n, k] with -1 for none.
    """
    asked = targets[:, :, 0] >= 0
    chosen = query.gather(1, queries[:, :, None].expand(-1, -1, query.size(-1)))
    scores = (chosen @ key.mT)[asked] * query.size(-1) ** -0.5
    later = torch.arange(key.size(1)) > queries[asked][:, None]
    scores = scores.masked_fill(later, float("-inf"))
    aims = targets[asked]
    on_target = scores.gather(1, aims.clamp(min=0)).masked_fill(aims < 0, float("-inf"))
    return scores.logsumexp(-1) - on_target.logsumexp(-1)


def apart(losses: Tensor, rests: Tensor) -> Tensor:
    """Return the mean of two means: of the queries that look for something, and of those that should rest."""
    if rests.all() or not rests.any():
        return losses.mean()
    return (losses[~rests].mean() + losses[rests].mean()) / 2


@dataclass(slots=True)
class Progress:
    """Running means for the progress line, and what was done so far."""

    loss: float = 0.0
    right: float = 0.0
    looks: dict[Aim, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def add(self, *, loss: float, right: float, looks: Mapping[Aim, float], tokens: int) -> None:
        """Take one step into the means."""
        self.loss = _mixed(self.loss if self.tokens else None, loss)
        self.right = _mixed(self.right if self.tokens else None, right)
        for aim, value in looks.items():
            self.looks[aim] = _mixed(self.looks.get(aim), value)
        self.tokens += tokens

    def line(self, step: int, steps: int) -> str:
        """Return the progress as one line."""
        looks = ", ".join(f"{aim} {value:.2f}" for aim, value in self.looks.items())
        left = (steps - step) * self.seconds / max(step, 1) / 60
        return (
            f"step {step}/{steps}  {self.tokens / 1e6:.2f}M tokens  loss {self.loss:.3f}  answers' first tokens right "
            f"{self.right:.3f}  attention: {looks}  {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s  "
            f"{self.seconds / 60:.1f} min, {left:.0f} min left"
        )


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else 0.95 * old + 0.05 * new


class Trainer:
    """One process's part of a training run."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, *, rank: int = 0) -> None:
        self.recipe, self.rank = recipe, rank
        torch.manual_seed(recipe.seed)
        self.network = Network(recipe.shape)
        initialise(self.network)
        self._encoder = Encoder(tokenizer)
        gather = dist.all_reduce if recipe.processes > 1 else _keep
        self._muon = Muon(self.network.matrices(), rank=rank, processes=recipe.processes, gather=gather)
        vectors = [{"params": self.network.vectors(), "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(vectors, lr=recipe.vector_rate, betas=(0.9, 0.98), fused=True)
        self.step, self.progress = 0, Progress()
        self._kept: dict[str, Tensor] = {}

    def batch(self, step: int) -> Batch:
        """Return this process's batch of a step; it depends on nothing but recipe, step and rank."""
        recipe, stage = self.recipe, self.recipe.stage(step)
        rng = random.Random(f"{recipe.seed}/{step}/{self.rank}")
        rows = [
            self._encoder.repeats(rng, stage.row_tokens)
            if rng.random() < stage.repeats
            else self._encoder.questions(rng, stage)
            for _ in range(stage.rows)
        ]
        return collated(rows, rng, stage, positions=recipe.shape.positions)

    def train(self, *, until: int) -> None:
        """Go on from the present step to `until`."""
        while self.step < until:
            started = time.monotonic()
            self._one()
            self.progress.seconds += time.monotonic() - started

    def result(self) -> Network:
        """Return the network as it is handed out: after the second hill, with a share of the weights before it."""
        found = Network(self.recipe.shape)
        share = self.recipe.kept_share if self._kept else 0.0
        with torch.no_grad():
            for name, weight in self.network.state_dict().items():
                kept = self._kept.get(name, weight)
                found.state_dict()[name].copy_((1 - share) * weight + share * kept)
        return found

    def _one(self) -> None:
        recipe, network = self.recipe, self.network
        if self.step == recipe.hill_start:
            self._kept = {name: weight.clone() for name, weight in network.state_dict().items()}
        batch = self.batch(self.step)
        loss, looks, hits = self._losses(batch)
        look = torch.stack(list(looks.values())).sum() if looks else torch.zeros(())
        (loss + recipe.look(self.step) * look).backward()
        if recipe.processes > 1:
            self._share_gradients()
        torch.nn.utils.clip_grad_norm_(network.vectors(), 1.0)
        rate = recipe.rate(self.step)
        self._adam.param_groups[0]["lr"] = recipe.vector_rate * rate
        self._adam.step()
        self._muon.step(recipe.matrix_rate * rate)
        network.zero_grad(set_to_none=True)
        self.step += 1
        self.progress.add(
            loss=loss.item(),
            right=hits.float().mean().item() if hits.numel() else 1.0,
            looks={aim: value.item() for (aim, _), value in looks.items()},
            tokens=batch.ids.numel() * recipe.processes,
        )

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[tuple[Aim, int], Tensor], Tensor]:
        probes = self.recipe.probes()
        hidden, found = self.network(batch.ids, batch.positions, [p for group in probes.values() for p in group])
        loss, hits = token_loss(hidden, batch, self.network.embedding)
        looks, are_apart = {}, self.recipe.rests_apart(self.step)
        for aim, group in probes.items():
            for probe in group:
                losses = look_losses(*found[probe], *batch.looks[aim])
                if losses.numel():
                    targets = batch.looks[aim][1][:, :, 0]
                    rests = (targets == 0)[targets >= 0]
                    looks[aim, probe.head] = apart(losses, rests) if are_apart else losses.mean()
        return loss, looks, hits

    def _share_gradients(self) -> None:
        weights = list(self.network.parameters())
        flat = torch.cat([w.grad.reshape(-1) for w in weights if w.grad is not None])
        dist.all_reduce(flat)
        flat /= self.recipe.processes
        offset = 0
        for weight in weights:
            weight.grad = flat[offset : offset + weight.numel()].view_as(weight)
            offset += weight.numel()

    def save(self, path: Path) -> None:
        """Write everything that a later run needs to go on; the file is whole or absent."""
        partial = path.with_suffix(".partial")
        facts = {"recipe": asdict(self.recipe), "step": self.step, "progress": asdict(self.progress)}
        save_file(self._tensors(), partial, metadata={"facts": json.dumps(facts)})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe; before the descent, `steps` may be another."""
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            self._require_same(path, facts)
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.step, self.progress = facts["step"], Progress(**facts["progress"])
        self._kept = {name: torch.empty_like(weight) for name, weight in self.network.state_dict().items()}
        if self.step <= self.recipe.hill_start:
            self._kept = {}
        self._begin_adam()
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(saved[name])

    def _require_same(self, path: Path, facts: Mapping[str, Any]) -> None:
        theirs, ours = facts["recipe"], asdict(self.recipe)
        plateau_end = self.recipe.plateau_end + min(0, theirs["steps"] - self.recipe.steps)
        if theirs | ({"steps": self.recipe.steps} if facts["step"] <= plateau_end else {}) != ours:
            raise SystemExit(f"{path} was made by another recipe; start in another folder")

    def _begin_adam(self) -> None:
        """Make the optimizer's state, which is otherwise made by its first step."""
        for weight in self.network.vectors():
            self._adam.state[weight] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self._kept.items()}
        tensors |= {f"muon.{index}": momentum for index, momentum in enumerate(self._muon.momenta)}
        for index, weight in enumerate(self.network.vectors()):
            tensors |= {f"adam.{index}.{name}": value for name, value in self._adam.state[weight].items()}
        return tensors


def _keep(tensor: Tensor) -> None:
    """With one process there is nothing to add up."""
