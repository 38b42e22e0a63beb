"""Train the embedded model from step 0, or go on from the last checkpoint.

    python tools/train_embedded_model.py --out runs/first
    python tools/train_embedded_model.py --out runs/first             # goes on where it stopped
    python tools/train_embedded_model.py --out runs/check --stop 50   # prints the digest of the weights
    python tools/train_embedded_model.py --out runs/qwen2 --family qwen2   # the same with biases, as a Qwen2

The folder then holds the model twice: `bfloat16`, which the package ships, and `float32`. The same recipe gives the
same weights on the same kind of machine, in one sitting or in several.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.training.evaluate import accuracy
from tools.training.export import export
from tools.training.loop import Trainer
from tools.training.network import Network
from tools.training.recipe import Recipe
from tools.training.tokenizer import train_tokenizer

_LINE_STEPS, _CHECKPOINT_STEPS, _ACCURACY_STEPS, _CONTEXTS = 25, 100, 500, 12
_MEASURED = (("notes", 128), ("table", 128), ("both", 128), ("notes", 512), ("both", 512))


def digest(network: Network) -> str:
    """Return the SHA-256 of the weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _work(rank: int, recipe: Recipe, out: Path, stop: int) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    if recipe.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=recipe.processes)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    trainer = Trainer(recipe, tokenizer, rank=rank)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        while trainer.step < stop:
            trainer.train(until=min(stop, trainer.step - trainer.step % _LINE_STEPS + _LINE_STEPS))
            if rank == 0:
                _report(trainer, tokenizer, log)
                if trainer.step % _CHECKPOINT_STEPS == 0 or trainer.step == stop:
                    trainer.save(checkpoint)
        if rank == 0:
            result = trainer.result()
            _say(log, f"digest after {trainer.step} steps: {digest(result)}")
            export(result, tokenizer, out / "bfloat16", dtype=torch.bfloat16)
            export(result, tokenizer, out / "float32", dtype=torch.float32)
    if recipe.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def _report(trainer: Trainer, tokenizer: Tokenizer, log: TextIO) -> None:
    _say(log, trainer.progress.line(trainer.step, trainer.recipe.steps))
    if trainer.step % _ACCURACY_STEPS == 0:
        cells = (
            f"{kind} {tokens}: {accuracy(trainer.network, tokenizer, kind, tokens, contexts=_CONTEXTS):.3f}"
            for kind, tokens in _MEASURED
        )
        _say(log, f"held out, step {trainer.step}  {'  '.join(cells)}")


def _say(log: TextIO, text: str) -> None:
    print(text, flush=True)
    print(text, file=log, flush=True)


def main() -> int:
    """Train, with a line of progress every few steps."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer, checkpoint, log and results")
    parser.add_argument("--steps", type=int, default=recipe.steps, help="steps of the whole run (default %(default)s)")
    parser.add_argument("--stop", type=int, help="stop after this step, to go on later (default: at the end)")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="seed of corpus and weights (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=recipe.processes, help="processes of one thread each (default %(default)s)"
    )
    parser.add_argument("--family", choices=("llama", "qwen2"), default="llama", help="qwen2 has biases (llama)")
    args = parser.parse_args()
    shape = replace(recipe.shape, has_bias=args.family == "qwen2")
    recipe = replace(recipe, steps=args.steps, seed=args.seed, processes=args.processes, shape=shape)
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        train_tokenizer(seed=args.seed, vocabulary=recipe.shape.vocabulary).save(str(out / "tokenizer.json"))
    (out / "meeting").unlink(missing_ok=True)
    stop = min(args.stop or args.steps, args.steps)
    if recipe.processes == 1:
        _work(0, recipe, out, stop)
    else:
        mp.spawn(_work, (recipe, out, stop), nprocs=recipe.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
