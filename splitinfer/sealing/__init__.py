"""Sealing: frozen bytes in, a stream of authenticated chunks out; both sides seal, each with its own stream keys."""
