"""Tools that measure: speed against other frameworks, memory, crashes, scaling over devices."""
