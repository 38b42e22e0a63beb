"""Attacks, utility, audits, cost, reports: what a policy really gives away. Imports the product, never the reverse."""
