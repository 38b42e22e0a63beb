"""The embedded model decodes on a cache that only the device can read, and says what it says in the clear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from splitinfer import embedded
from splitinfer.cache.live import feed, new_cache
from splitinfer.cache.snapshot import take
from splitinfer.homomorphic.cloud import CloudHalf
from splitinfer.homomorphic.device import DeviceHalf
from splitinfer.homomorphic.linear_plan import LinearShape
from splitinfer.homomorphic.planning import AttentionShape
from splitinfer.homomorphic.weights import LinearStore
from splitinfer.model.layerwise import LocalAttention, LocalLinear, cached_rows, layerwise, matrices
from splitinfer.rounds import Operation
from tests.support.homomorphic import Loopback

CLEAR_GAP = 0.01
LOGIT_ERROR = 2e-3


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32, local_files_only=True).eval()


def prefix_rows(model: PreTrainedModel, token_ids: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    cache = new_cache(model.config)
    with torch.inference_mode():
        feed(model.base_model, token_ids, cache)
    return cached_rows(take(cache, true_tokens=len(token_ids)))


@pytest.mark.parametrize(
    ("public", "linears_at_cloud", "tokens"),
    [(0, False, 4), (40, False, 2), (0, True, 2)],
    ids=["encrypted prefix", "public and encrypted prefix", "linear layers too"],
)
def test_greedy_tokens_are_those_of_plaintext(
    model: PreTrainedModel, *, public: int, linears_at_cloud: bool, tokens: int
) -> None:
    token_ids = torch.randint(3, model.config.vocab_size, (81,), generator=torch.Generator().manual_seed(4)).tolist()
    rows, written, held = prefix_rows(model, token_ids[:-1]), layerwise(model), matrices(model)
    named = {(layer, Operation[name.upper()]): matrix for (layer, name), matrix in held.items()}
    shapes = {key: LinearShape(*matrix.shape) for key, matrix in named.items()} if linears_at_cloud else {}
    loopback = Loopback(CloudHalf(linears=LinearStore(named if linears_at_cloud else {})))
    shape = AttentionShape(len(rows), written.heads, written.kv_heads, written.head_dim)
    plain, local = LocalAttention(len(rows)), LocalLinear(held)
    errors, last = [], token_ids[-1]
    with DeviceHalf(shape, loopback.exchange, expected_tokens=80, linears=shapes) as device:
        for layer, (keys, values) in enumerate(rows):
            plain.load(layer, keys, values)
            device.load(layer, keys[:public], values[:public], is_public=True)
            device.load(layer, keys[public:], values[public:])
        linear = device.linear if linears_at_cloud else local.linear
        for position in range(80, 80 + tokens):
            expected = written.step(last, position, attend=plain.attend, linear=local.linear)
            found = written.step(last, position, attend=device.attend, linear=linear)
            errors.append(np.abs(found - expected).max() / expected.std())
            best, second = np.sort(expected)[-1:-3:-1]
            assert best - second <= CLEAR_GAP or found.argmax() == expected.argmax()
            last = int(expected.argmax())
    print(f"largest logit error: {max(errors):.1e} standard deviations of the logits")  # noqa: T201
    assert max(errors) < LOGIT_ERROR
