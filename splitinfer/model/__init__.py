"""The model: identity, loading, prompt building, prefill, decode; both sides. Import the modules, not this package."""
