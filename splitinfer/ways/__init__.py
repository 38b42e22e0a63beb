"""How a run goes under each trust mode: `table` says which way, `run` what all of them share; on the device."""
