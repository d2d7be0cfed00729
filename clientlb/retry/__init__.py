"""When again. PURE: no clock, no randomness of its own, no I/O; `now` and `rng` are arguments."""
