"""How windows reach the device: all of them once, or K at a time while others are computed."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.streams.rows import RowStream
from tbptt.types import Cursor, Stream, Window, advance

RESIDENT_BYTES = 256 << 20


class Chunk(NamedTuple):
    """The windows of one call, on the device. Window k of the call is `(first + k) % M`.

    Attributes:
      windows: M windows, every field `[M, ...]`.
      first: int64 scalar.
      count: int64 scalar: how many windows the call takes, at most K. A tensor, so that a
        shorter call is the same program.
    """

    windows: Window
    first: tf.Tensor
    count: tf.Tensor

    def place(self, k: tf.Tensor) -> tf.Tensor:
        """Where window k of the call is among the M. int32: a TPU divides int64 bit by bit."""
        held = tf.nest.flatten(self.windows.inputs)[0].shape[0]  # M
        return tf.cast(self.first + k, tf.int32) % held


class Feed(Protocol):
    """Chunks of a stream, by cursor."""

    stream: Stream
    windows_per_call: int

    def take(self, cursor: Cursor, count: int) -> tuple[Chunk, Cursor]:
        """`count <= windows_per_call` windows from the cursor on, and the cursor after them."""


class Placement(Protocol):
    """Which rows are read here, and where they go: `distribution.Replicas`."""

    def rows_here(self, rows: int) -> slice:
        """Which of so many rows are this process's."""

    def put(self, windows: Window) -> Window:
        """Its rows of stacked windows, NumPy's, on its devices."""


class _Here:
    """All rows, on the device of this process."""

    def rows_here(self, rows: int) -> slice:
        return slice(0, rows)

    def put(self, windows: Window) -> Window:
        return tf.nest.map_structure(
            lambda field: None if field is None else tf.constant(field), windows
        )


class ResidentFeed:
    """Keeps a whole epoch on the device: a call moves two integers."""

    def __init__(
        self, stream: Stream, windows_per_call: int, *, replicas: Placement | None = None
    ) -> None:
        checks.check_at_least("windows_per_call", windows_per_call, 1)
        if not stream.epochs_alike:
            raise ValueError(
                "A stream whose epochs differ cannot stay on the device. Use PrefetchFeed."
            )
        self.stream = stream
        self.windows_per_call = windows_per_call
        self._windows = _reader(stream, replicas)(Cursor(), stream.windows_per_epoch)

    def take(self, cursor: Cursor, count: int) -> tuple[Chunk, Cursor]:
        """See `Feed`."""
        checks.check_between("count", count, 1, self.windows_per_call + 1)
        chunk = _chunk(self._windows, cursor.index, count)
        return chunk, advance(cursor, count, self.stream.windows_per_epoch)


class PrefetchFeed:
    """Reads the next K windows in a thread, while the device works on these."""

    def __init__(
        self, stream: Stream, windows_per_call: int, *, replicas: Placement | None = None
    ) -> None:
        checks.check_at_least("windows_per_call", windows_per_call, 1)
        self.stream = stream
        self.windows_per_call = windows_per_call
        self._read = _reader(stream, replicas)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[Cursor, concurrent.futures.Future[Window]] | None = None

    def take(self, cursor: Cursor, count: int) -> tuple[Chunk, Cursor]:
        """See `Feed`. Fast where it was called for: at the end of the call before."""
        checks.check_between("count", count, 1, self.windows_per_call + 1)
        ahead = self._ahead
        if ahead is None or ahead[0] != cursor:
            ahead = self._begin(cursor)
        windows = ahead[1].result()
        following = advance(cursor, count, self.stream.windows_per_epoch)
        self._ahead = self._begin(following)
        return _chunk(windows, 0, count), following

    def _begin(self, cursor: Cursor) -> tuple[Cursor, "concurrent.futures.Future[Window]"]:
        return cursor, self._thread.submit(self._read, cursor, self.windows_per_call)


def open_feed(
    stream: Stream,
    windows_per_call: int,
    *,
    resident_bytes: int = RESIDENT_BYTES,
    replicas: Placement | None = None,
) -> Feed:
    """A feed of `windows_per_call` windows at most: resident where an epoch is small.

    Args:
      stream: what to read.
      windows_per_call: K.
      resident_bytes: the largest epoch, as int32 inputs and targets, that stays on the device.
      replicas: who trains; each process reads its own rows of them. None: this device alone.

    Raises:
      ValueError: the rows cannot be dealt to so many replicas.
    """
    checks.check_at_least("windows_per_call", windows_per_call, 1)
    one, _ = stream.windows(Cursor(), 1)
    window_bytes = sum(part.nbytes for part in _arrays(one))
    if stream.epochs_alike and window_bytes * stream.windows_per_epoch <= resident_bytes:
        return ResidentFeed(stream, windows_per_call, replicas=replicas)
    return PrefetchFeed(stream, windows_per_call, replicas=replicas)


def _reader(stream: Stream, replicas: Placement | None) -> Callable[[Cursor, int], Window]:
    """`(cursor, count) -> windows`, of the rows of this process, on its devices."""
    where = replicas or _Here()
    rows = where.rows_here(stream.rows)

    def read(cursor: Cursor, count: int) -> Window:
        if isinstance(stream, RowStream):
            return where.put(stream.windows(cursor, count, rows)[0])
        return where.put(stream.windows(cursor, count)[0].of_rows(rows))  # it reads all or none

    return read


def _chunk(windows: Window, first: int, count: int) -> Chunk:
    return Chunk(windows, tf.constant(first, tf.int64), tf.constant(count, tf.int64))


def _arrays(windows: Window) -> list[Any]:
    return [np.asarray(field) for field in tf.nest.flatten(windows) if field is not None]
