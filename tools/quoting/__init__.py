"""Figures of committed reports in documents: reports to what a quote shows, documents to the quotes in them."""
