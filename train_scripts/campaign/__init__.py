"""The fault campaign: every cell does one thing to a run, and the run must end as it would have ended without it."""
