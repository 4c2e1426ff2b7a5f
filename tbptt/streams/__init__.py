"""Streams cut data into windows, as pure functions of a cursor; feeds move them to the device.

`contiguous` reads one sequence; `documents`, `frames` and `series` read many segments; `rows` is
the base class of all. `truncation` sets window length and stride. `feed` prefetches windows.
"""
