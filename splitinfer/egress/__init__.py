"""What leaves the device, and the record of it: the gate, the tamper-evident audit log, checkpoints; device side."""
