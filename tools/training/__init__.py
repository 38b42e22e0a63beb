"""Training of the embedded model: rows of the corpus, the network, its first weights, the optimizer, the recipe."""
