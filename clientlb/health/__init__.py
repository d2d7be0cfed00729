"""Who may be tried. PURE: no clock, no I/O; `now` and `rng` are arguments."""
