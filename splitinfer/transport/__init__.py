"""Moving a released transfer to the cloud and its reply back: over HTTP, or in memory; device side."""
