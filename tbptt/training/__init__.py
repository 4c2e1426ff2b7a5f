"""From windows to updates: one step, the loop over it, evaluation, and what happens between."""
