"""The KV cache that moves: `snapshot` freezes the model's live cache and sets it up again; both sides."""
