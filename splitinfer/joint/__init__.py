"""Decode that device and cloud compute together, a round at a time: `homomorphic` and `masked`; on the device."""
