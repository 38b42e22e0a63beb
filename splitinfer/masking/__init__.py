"""Linear layers on one-time-masked numbers in Z_2^48: a device half with the masks, a cloud half without; numpy."""
