"""Bounded intake of untrusted bytes: a Source in, `VerifiedTransfer` out, after the numbered checks; both sides."""
