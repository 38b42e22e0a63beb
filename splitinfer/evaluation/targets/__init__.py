"""Obfuscators as attack targets. None of them is a policy, and nothing in the product imports them."""
