"""Noise with an exact price: mechanisms, accounting and the certificate; on the device, numpy only."""
