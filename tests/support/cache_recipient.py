"""The recipient in another process: packed slabs in, the logits of a continuation out.

Run as `python -m tests.support.cache_recipient FOLDER`; FOLDER/cases.json lists the cases, NAME.slabs holds the bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitinfer import codec
from splitinfer.cache.live import feed
from splitinfer.cache.snapshot import layout_of, restore
from tests.support.cache_models import tiny_model, tiny_tokens

CONTINUATION_TOKENS = 12


def continuation_logits(model: Any, cache: Any) -> torch.Tensor:
    """Return the logits [steps, vocabulary] of fixed tokens fed one by one on a live cache."""
    rows = []
    with torch.inference_mode():
        for token in tiny_tokens(CONTINUATION_TOKENS, seed=9):
            rows.append(feed(model, [token], cache).logits[0, -1].float())
    return torch.stack(rows)


def receive(layout: Any, data: bytes, *, true_tokens: int, padded_tokens: int) -> Any:
    sink = codec.sink(layout, codec="raw", true_tokens=true_tokens, padded_tokens=padded_tokens)
    at = 0
    while at < len(data):
        slab = sink.slab()
        slab[:] = data[at : at + len(slab)]
        at += len(slab)
    return sink.finish()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for case in json.loads((folder / "cases.json").read_text()):
        model = tiny_model(case["model"], case["dtype"])
        data = (folder / f"{case['name']}.slabs").read_bytes()
        counts = {"true_tokens": case["true_tokens"], "padded_tokens": case["padded_tokens"]}
        snapshot = receive(layout_of(model), data, **counts)
        logits = continuation_logits(model, restore(snapshot, model.config))
        np.save(folder / f"{case['name']}.npy", logits.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
