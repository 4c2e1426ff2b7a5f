"""Feeds move windows to the device: a whole epoch at once, or K windows ahead by a thread."""

import concurrent.futures
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.streams.rows import RowStream
from tbptt.types import Cursor, Stream, Window, advance

RESIDENT_BYTES = 256 << 20


class Chunk(NamedTuple):
    """The windows of one call, on the device: window k of the call is number `(first + k) % M`.

    Attributes:
      windows: M stacked windows, every field `[M, ...]`.
      first: int64 scalar, the index of the call's first window.
      count: int64 scalar, the number of windows in the call, at most K. It is a tensor, so that a
        shorter call runs the same program.
    """

    windows: Window
    first: tf.Tensor
    count: tf.Tensor

    def place(self, k: tf.Tensor) -> tf.Tensor:
        """Returns the index of window k of the call among the M windows.

        It is int32, because a TPU divides int64 bit by bit.
        """
        held = tf.nest.flatten(self.windows.inputs)[0].shape[0]  # M
        return tf.cast(self.first + k, tf.int32) % held


class Feed(Protocol):
    """Gives the windows of a stream by cursor, as chunks on the device."""

    stream: Stream
    windows_per_call: int

    def take(self, cursor: Cursor, count: int) -> tuple[Chunk, Cursor]:
        """Returns `count` windows, at most `windows_per_call`, and the cursor after them."""


class Placement(Protocol):
    """Decides which rows this process reads and where they go, as `distribution.Replicas` does."""

    def rows_here(self, rows: int) -> slice:
        """Returns the slice of `rows` rows that this process reads."""

    def put(self, windows: Window) -> Window:
        """Puts stacked NumPy windows of this process's rows on its devices."""


class _Here:
    """Places all rows on the device of this process."""

    def rows_here(self, rows: int) -> slice:
        """Returns the rows of this process: all of them."""
        return slice(0, rows)

    def put(self, windows: Window) -> Window:
        """Puts stacked NumPy windows on the default device."""
        return tf.nest.map_structure(
            lambda field: None if field is None else tf.constant(field), windows
        )


class ResidentFeed:
    """Keeps a whole epoch on the device, so that a call moves only two integers."""

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
        where = replicas or _Here()
        self._windows = where.put(_read(stream, Cursor(), stream.windows_per_epoch, where))

    def take(self, cursor: Cursor, count: int) -> tuple[Chunk, Cursor]:
        """Returns the next windows on the device, and the cursor after them; see `Feed`."""
        checks.check_between("count", count, 1, self.windows_per_call + 1)
        chunk = _chunk(self._windows, cursor.index, count)
        return chunk, advance(cursor, count, self.stream.windows_per_epoch)


class PrefetchFeed:
    """Prefetches the next K windows in a thread, while the device works on the current ones.

    Every window is read from the stream once: windows that a call of fewer than K leaves over are
    kept for the next call, if that continues where this one ends.
    """

    def __init__(
        self, stream: Stream, windows_per_call: int, *, replicas: Placement | None = None
    ) -> None:
        checks.check_at_least("windows_per_call", windows_per_call, 1)
        self.stream = stream
        self.windows_per_call = windows_per_call
        self._where = replicas or _Here()
        self._where.rows_here(stream.rows)  # raises here, and not in the thread
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[Cursor, concurrent.futures.Future[_Block]] | None = None

    def take(self, cursor: Cursor, count: int) -> tuple[Chunk, Cursor]:
        """Returns the next windows, see `Feed`; ready if the last call ended at `cursor`."""
        checks.check_between("count", count, 1, self.windows_per_call + 1)
        ahead = self._ahead
        if ahead is None or ahead[0] != cursor:
            ahead = cursor, self._thread.submit(self._read, cursor)
        block = ahead[1].result()
        following = advance(cursor, count, self.stream.windows_per_epoch)
        left_over = _cut(block.read, count)
        self._ahead = following, self._thread.submit(self._read, following, left_over)
        return _chunk(block.placed, 0, count), following

    def _read(self, cursor: Cursor, left_over: Window | None = None) -> "_Block":
        """Reads the K windows from `cursor` on; `left_over` holds the first of them."""
        held = 0 if left_over is None else len(tf.nest.flatten(left_over.inputs)[0])
        first_new = advance(cursor, held, self.stream.windows_per_epoch)
        read = _read(self.stream, first_new, self.windows_per_call - held, self._where)
        if left_over is not None:
            read = tf.nest.map_structure(
                lambda *parts: None if parts[0] is None else np.concatenate(parts), left_over, read
            )
        return _Block(read, self._where.put(read))


class _Block(NamedTuple):
    """K windows twice: as NumPy arrays, and on the device."""

    read: Window
    placed: Window


def _cut(windows: Window, count: int) -> Window | None:
    """Removes the first `count` of stacked windows; returns None if none is left."""
    if count == len(tf.nest.flatten(windows.inputs)[0]):
        return None
    return tf.nest.map_structure(lambda f: None if f is None else f[count:], windows)


def open_feed(
    stream: Stream,
    windows_per_call: int,
    *,
    resident_bytes: int = RESIDENT_BYTES,
    replicas: Placement | None = None,
) -> Feed:
    """Opens a feed: a `ResidentFeed` if an epoch is small, else a `PrefetchFeed`.

    Args:
      stream: the stream to read.
      windows_per_call: K, the largest number of windows in a call.
      resident_bytes: the size of the largest epoch that stays on the device.
      replicas: the devices that train; each process reads its own rows. None: this device alone.

    Raises:
      ValueError: the rows cannot be divided equally among the replicas.
    """
    checks.check_at_least("windows_per_call", windows_per_call, 1)
    one, _ = stream.windows(Cursor(), 1)
    window_bytes = sum(part.nbytes for part in _arrays(one))
    if stream.epochs_alike and window_bytes * stream.windows_per_epoch <= resident_bytes:
        return ResidentFeed(stream, windows_per_call, replicas=replicas)
    return PrefetchFeed(stream, windows_per_call, replicas=replicas)


def _read(stream: Stream, cursor: Cursor, count: int, where: Placement) -> Window:
    """Reads `count` stacked windows from `cursor` on, only the rows of this process."""
    rows = where.rows_here(stream.rows)
    if isinstance(stream, RowStream):
        return stream.windows(cursor, count, rows)[0]
    return stream.windows(cursor, count)[0].of_rows(rows)  # such a stream reads all rows


def _chunk(windows: Window, first: int, count: int) -> Chunk:
    return Chunk(windows, tf.constant(first, tf.int64), tf.constant(count, tf.int64))


def _arrays(windows: Window) -> list[Any]:
    return [np.asarray(field) for field in tf.nest.flatten(windows) if field is not None]
