"""Fingerprints of streams, so that a resumed run can check that its data have not changed."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tbptt.streams.rows import ALL, RowStream
from tbptt.types import Cursor, Stream

WHOLE = 1 << 28, 1 << 16  # bytes and windows of the largest epoch that is read whole
SAMPLE = 1 << 25  # bytes read of a larger epoch, by stretches and again by windows
WINDOWS = 1 << 12  # windows read of a larger epoch, at most
STRETCHES = 1 << 14  # number of stretches into which the sample of a `RowStream` is divided
SAMPLED = "sampled-2:"  # prefix of the fingerprint of a larger epoch: version 2 of the rule


def fingerprint(stream: Stream) -> str:
    """Hashes a stream's windows to sixteen hexadecimal digits: the same windows, the same digits.

    The windows themselves are hashed, so this works for every stream, and shows a change of the
    data as well as of rows, truncation and seed. An epoch of at most 256 MiB and 65,536 windows is
    read whole, and any change is found.

    Of a larger epoch at most 4,096 windows of 32 MiB in all are read, evenly spread, and the result
    begins with `sampled-2:`. Where rows can be read anywhere (`RowStream`), 32 MiB more are read in
    about 16,000 short stretches: every row is divided into equal parts, and each part gives one
    stretch, at a random place. So a change as long as two parts of a row is always found, and
    scattered changes of a share p of all steps are missed with probability (1 - p)^n, where n is
    the number of steps read (4 million of ids). A single changed token is usually missed. Of other
    streams only the windows are seen, and a change between them is missed.

    Example:
      >>> stream = ContiguousStream(np.arange(9) % 5, rows=2, window_length=4, vocabulary_size=5)
      >>> other = ContiguousStream(np.arange(9) % 4, rows=2, window_length=4, vocabulary_size=5)
      >>> fingerprint(stream) == fingerprint(stream), fingerprint(stream) == fingerprint(other)
      (True, False)
    """
    count = stream.windows_per_epoch
    digest = hashlib.sha256(f"{stream.rows} {count}".encode())
    size = sum(part.nbytes for part in _arrays(stream.windows(Cursor(), 1)[0]))
    whole = size * count <= WHOLE[0] and count <= WHOLE[1]
    kept = count if whole else min(count, WINDOWS, max(2, SAMPLE // size))
    cursors = [Cursor(0, k * (count - 1) // max(1, kept - 1)) for k in range(kept)]
    for cursor in [*cursors, Cursor(1, 0), Cursor(1, count - 1)]:
        _add(digest, stream.windows(cursor, 1)[0])
    if whole:
        return digest.hexdigest()[:16]
    if isinstance(stream, RowStream):
        a_step = max(1, size // (stream.rows * stream.window_length))
        for first, length in _stretches(stream, SAMPLE // a_step):
            _add(digest, stream.read(0, first, length, ALL))
    return SAMPLED + digest.hexdigest()[:16]


def _stretches(stream: RowStream, steps: int) -> Iterator[tuple[int, int]]:
    """Yields first step and length of stretches of all rows: one in each of equal parts.

    The stretches have `steps` steps in all. Their places are random, because regular places could
    all miss a regular change.
    """
    parts = min(stream.row_length, max(16, STRETCHES // stream.rows))
    part = stream.row_length / parts
    length = min(int(part), max(1, steps // (parts * stream.rows)))
    places = np.random.default_rng(0).random(parts)
    places[-1] = 1.0  # the last stretch includes the last step
    for k, place in enumerate(places):
        yield int(k * part + place * (part - length)), length


def _add(digest: Any, arrays: tuple) -> None:
    for part in _arrays(arrays):
        digest.update(f"{part.dtype} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)


def _arrays(nest: Any) -> Iterator[np.ndarray]:
    """Yields the arrays of a window or a span, whose inputs and targets may be nests of arrays."""
    if isinstance(nest, dict):
        nest = [nest[key] for key in sorted(nest)]
    if isinstance(nest, tuple | list):
        for part in nest:
            yield from _arrays(part)
    elif nest is not None:
        yield np.asarray(nest)
