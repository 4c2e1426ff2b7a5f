"""Programs that measure: speed beside other systems, memory, crashes, several devices."""
