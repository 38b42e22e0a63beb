"""Attention and linear layers on CKKS ciphertexts: a device half with the keys, a cloud half without; numpy only."""
