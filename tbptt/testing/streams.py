"""Tests a stream of your own: the cursor decides the windows; each row continues or resets."""

import inspect
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.testing.compare import assert_same_bits, require
from tbptt.types import Cursor, Stream, Window, advance


def check_stream(stream: Stream, *, windows: int = 200) -> None:
    """Checks a stream: shapes, windows that the cursor alone decides, rows that continue or reset.

    The last is law 11.

    Args:
      stream: a `Stream`.
      windows: how many are read at most: two epochs and a window if there are fewer.

    Raises:
      LawError: a law is broken.

    Example:
      >>> check_stream(ContiguousStream(np.arange(25) % 5, rows=2, window_length=4,
      ...                               vocabulary_size=5))
    """
    check_cursor(stream, windows=windows)
    check_offsets(stream, windows=windows)
    check_stream_rows(stream, windows=windows)


def check_cursor(stream: Stream, *, windows: int = 200) -> None:
    """Checks that the windows of a stream are a pure function of the cursor.

    Read in any order, alone or many at once, across the end of an epoch: the same windows, and the
    cursor that follows.

    Args:
      stream, windows: see `check_stream`.

    Raises:
      LawError: they are not.
    """
    epoch, count = stream.windows_per_epoch, _count(stream, windows)
    together, end = stream.windows(Cursor(), count)
    expected = advance(Cursor(), count, epoch)
    require(end == expected, 0, f"{count} windows from Cursor() on end at {end}, not {expected}.")
    shape = [count, stream.window_length, stream.rows]
    for name in ("inputs", "targets"):
        for leaf in tf.nest.flatten(getattr(together, name)):
            found = list(leaf.shape[:3])
            require(found == shape, 0, f"{name} have shape {found} for [K, T, B] = {shape}.")
    for k in np.random.default_rng(1).permutation(count)[:12]:
        cursor = Cursor(*divmod(int(k), epoch))
        alone, following = stream.windows(cursor, 1)
        expected = advance(cursor, 1, epoch)
        require(following == expected, 0, f"after {cursor} comes {following}, not {expected}.")
        what = f"the window at {cursor}, read alone, against the same among {count}"
        assert_same_bits(_leaves(alone), _leaves(_some(together, slice(k, k + 1))), what=what)
    if stream.epochs_alike and count > epoch:
        alike = min(epoch, count - epoch)
        first, second = (_some(together, slice(at, at + alike)) for at in (0, epoch))
        what = "the second epoch of a stream with epochs_alike, against the first"
        assert_same_bits(_leaves(second), _leaves(first), what=what)


def check_offsets(stream: Stream, *, windows: int = 200) -> None:
    """Checks that each row of a window continues where the last window ended, or is reset: law 11.

    Args:
      stream, windows: see `check_stream`. Without `offset` in its windows nothing can be checked.

    Raises:
      LawError: a row neither goes on nor starts anew.
    """
    together, _ = stream.windows(Cursor(), _count(stream, windows))
    if together.offset is None:
        return
    starts = np.zeros(together.offset.shape, bool)
    if together.start is not None:
        starts |= together.start
    if together.controls.reset is not None:
        starts |= together.controls.reset[:, 0]
    moved: Any = stream.window_length
    if together.controls.advance is not None:
        moved = np.asarray(together.controls.advance)[:-1, None]
    fine = (together.offset[1:] == together.offset[:-1] + moved) | starts[1:]
    if not fine.all():
        k, row = np.argwhere(~fine)[0]
        require(
            False,
            11,
            f"row {row} of window {k + 1} is at {together.offset[k + 1, row]}, but window {k} left "
            "it elsewhere, and it does not start anew.",
        )
    begins = starts[:: stream.windows_per_epoch]
    require(begins[0].all(), 11, "a row does not start anew in the first window of the stream.")


def check_stream_rows(stream: Stream, *, windows: int = 200) -> None:
    """Checks that reading only some rows, as one of many processes does, gives the same rows.

    A stream whose method `windows` takes no rows cannot be read by several processes, and is not
    checked.

    Args:
      stream, windows: see `check_stream`.

    Raises:
      LawError: they are others.
    """
    if "rows" not in inspect.signature(stream.windows).parameters:
        return
    count = _count(stream, windows)
    windows_of_all, end = stream.windows(Cursor(), count)
    middle = max(1, stream.rows // 2)
    for rows in (slice(0, middle), slice(middle, stream.rows)):
        if rows.start == rows.stop:
            continue
        some, same_end = stream.windows(Cursor(), count, rows)  # type: ignore[call-arg]
        require(same_end == end, 0, f"rows {rows} end at {same_end}, all rows at {end}.")
        what = f"rows {rows.start} to {rows.stop} alone, against the same among all"
        assert_same_bits(_leaves(some), _leaves(windows_of_all.of_rows(rows)), law=4, what=what)


def _count(stream: Stream, windows: int) -> int:
    return min(windows, 2 * stream.windows_per_epoch + 1)


def _some(windows: Window, which: slice) -> Window:
    return windows.map_fields(lambda leaf, _: leaf[which])


def _leaves(windows: Window) -> dict[str, Any]:
    """Returns the fields of windows by name."""
    fields = {**windows._asdict(), **windows.controls._asdict()}
    del fields["controls"]
    return {name: field for name, field in fields.items() if field is not None}
