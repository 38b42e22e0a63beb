"""Audits of differential-privacy claims: release functions in, lower bounds on what they really give away out."""
