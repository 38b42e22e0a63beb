"""A byte-level tokenizer that splits any text: one token a byte, two merges and an end-of-text token."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
END = len(_ALPHABET) + 2
BYTE_VOCABULARY = END + 1


def byte_tokenizer() -> Any:
    vocabulary = {symbol: index for index, symbol in enumerate([*_ALPHABET, "th", "the", "<|end|>"])}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, clean_up_tokenization_spaces=False)
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    return tokenizer
